"""The error tree: drawn as it is, each with the status that the contract gives its fault."""

import inspect

import pytest

from callboard.runtime.core import errors
from callboard.runtime.core.errors import CallboardError, FieldError, InvalidPayload

STATUSES = {
    "InvalidRequest": 400,  # not a UUID, no JSON, a header that is not allowed
    "InvalidPayload": 422,  # "does not fit the type"
    "JobNotFound": 404,
    "QueueNotFound": 404,
    "IllegalTransition": 409,  # cancel or retry "Completed or failed", purge "a live one"
    "JobExists": 409,  # "taken by another route, body or caller"
    "KeyReused": 422,  # "the same key with anything of that different"
    "QueueFull": 429,
    "StoreUnavailable": 503,
    "ShuttingDown": 503,
}
"""Source: the wire contract, submitting and steering."""
AT_START = {"ConfigError", "HandlerError", "StoreRefused"}
"""These end the start of an app and are nobody's answer."""

CLASSES = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CallboardError)}


def draw(kind: type[CallboardError], indent: str = "") -> list[str]:
    """The names of the tree as the docstring draws them."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    order = [line.split(" ")[0] for line in drawn_names()]
    children.sort(key=lambda child: order.index(child.__name__))
    lines = [] if indent else [kind.__name__]
    for child in children:
        last = child is children[-1]
        lines.append(f"{indent}{'└' if last else '├'}── {child.__name__}")
        lines += draw(child, f"{indent}{' ' if last else '│'}   ")
    return lines


def drawn_lines() -> list[str]:
    assert errors.__doc__ is not None
    return errors.__doc__.partition("\n\n")[2].splitlines()


def drawn_names() -> list[str]:
    return [line.lstrip("│├└─ ") for line in drawn_lines()]


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    nodes = [
        line[: len(line) - len(bare)] + bare.split(" ")[0]
        for line, bare in zip(drawn_lines(), drawn_names(), strict=True)
    ]
    assert draw(CallboardError) == [node for node in nodes if node]


def test_every_error_that_can_be_an_answer_has_the_contracts_status() -> None:
    assert set(CLASSES) == {"CallboardError", *STATUSES, *AT_START}
    assert {name: CLASSES[name].http_status for name in STATUSES} == STATUSES


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_asking_again_helps_exactly_where_the_contract_sends_retry_after(name: str) -> None:
    assert CLASSES[name].retry_helps == (CLASSES[name].http_status in (429, 503))
    assert CLASSES[name].title
    assert inspect.getdoc(CLASSES[name])


def test_a_payload_error_says_what_is_wrong_where() -> None:
    found = (FieldError("/data", "expected str"), FieldError("", "missing"))
    error = InvalidPayload(found)
    assert error.errors == found
    assert str(error) == "/data: expected str; body: missing"
