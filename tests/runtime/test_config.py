"""Settings: the defaults that are promised, and a refusal for every value that cannot work."""

import os
import re
from typing import Any

import pytest

from callboard.runtime import Config, ConfigError, open_runtime

DEFAULTS = {
    "max_concurrent_jobs": 100,
    "max_queue_size": 10_000,
    "max_retries": 3,
    "retry_base_seconds": 2,
    "retry_max_seconds": 300,
    "timeout_seconds": 1800,
    "lease_seconds": 30,
    "max_lost_leases": 3,
    "drain_seconds": 15,
    "retention_seconds": 604_800,
    "max_body_bytes": 1_048_576,
    "body_seconds": 60,
    "max_result_bytes": 1_048_576,
    "max_events_per_job": 1000,
    "max_attempts_per_job": 100,
    "max_wait_seconds": 50,
    "expose_error_messages": False,
}


def test_defaults_are_those_that_are_promised() -> None:
    assert {name: getattr(Config(), name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("name", "least"),
    [(name, 0) for name in ("max_concurrent_jobs", "max_retries", "max_lost_leases")]
    + [
        (name, 1)
        for name in (
            "max_queue_size",
            "max_body_bytes",
            "max_events_per_job",
            "max_attempts_per_job",
            "max_subscriber_events",
        )
    ]
    + [("max_result_bytes", 2)],
)
def test_whole_numbers(name: str, least: int) -> None:
    assert getattr(make(name, least), name) == least
    for wrong in (least - 1, 1.5, "5", True, None):
        with pytest.raises(ConfigError, match=f"{name} is .*: give a whole number, {least} or more"):
            make(name, wrong)


def test_processes_are_as_many_as_processors_unless_they_are_counted() -> None:
    assert Config().max_processes is None
    assert 1 <= Config().processes <= (os.cpu_count() or 1)
    assert Config(max_processes=3).processes == 3
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ConfigError, match=r"max_processes is .*: give a whole number, 1 or more, or None"):
            make("max_processes", wrong)


@pytest.mark.parametrize(
    ("name", "above", "optional"),
    [
        ("retry_base_seconds", False, False),
        ("retry_max_seconds", False, False),
        ("timeout_seconds", True, True),
        ("lease_seconds", True, False),
        ("drain_seconds", False, False),
        ("retention_seconds", False, True),
        ("body_seconds", True, False),
        ("max_wait_seconds", False, False),
        ("progress_interval_seconds", False, False),
        ("store_timeout_seconds", True, False),
        ("poll_seconds", True, False),
    ],
)
def test_seconds(name: str, above: bool, optional: bool) -> None:
    make(name, 0.5)
    wrongs: list[Any] = [-1, float("nan"), float("inf"), 1e10, "5", True]
    (wrongs.append(0) if above else make(name, 0))
    make(name, None) if optional else wrongs.append(None)
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=f"{name} is {re.escape(repr(wrong))}: give seconds, ") as caught:
            make(name, wrong)
        assert str(caught.value).endswith(", or None") is optional
        assert ("more than 0" in str(caught.value)) is above


@pytest.mark.parametrize("name", ["unstored_headers", "redact_query"])
def test_names(name: str) -> None:
    assert getattr(make(name, ("a", "b")), name) == ("a", "b")
    for wrong in ("Cookie", (5,)):
        with pytest.raises(ConfigError, match="give a tuple of names"):
            make(name, wrong)


@pytest.mark.parametrize(("drain_seconds", "cleanup_seconds"), [(15, 5), (60, 5), (3, 1), (0, 0)])
def test_time_for_cleanup(drain_seconds: float, cleanup_seconds: float) -> None:
    assert Config(drain_seconds=drain_seconds).cleanup_seconds == cleanup_seconds


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().max_retries = 5  # type: ignore[misc]


def make(name: str, value: Any) -> Config:
    options: dict[str, Any] = {name: value}
    return Config(**options)


async def test_a_url_is_no_store() -> None:
    with pytest.raises(ConfigError, match="open_store"):
        async with open_runtime("memory://", []):  # type: ignore[arg-type]
            pass
