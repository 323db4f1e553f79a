"""The documents against the code: links, Python blocks, the diagram, the table of settings, the skeleton of a store."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from msgspec.structs import fields
from quart_trio import QuartTrio

from callboard.runtime import Config, Handler, Job, JobContext, Request, Status
from callboard.runtime.context import Reports
from callboard.runtime.core import store as protocol
from callboard.runtime.core.document import FIELDS
from callboard.runtime.core.transition import TABLE, diagram
from callboard.web import Callboard
from callboard.web.access import Action
from callboard.web.limits import ENDPOINT_PREFIX

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REGENERATE = """python -c "from callboard.runtime.core.transition import diagram; print(diagram())\""""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each block of that language."""
    text = page.read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 2, found[1]


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table with that heading row."""
    lines = page.read_text().splitlines()
    start = lines.index(heading) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def anchors(page: Path) -> set[str]:
    """The headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), f"{target} leaves the repository"
        assert there.is_file(), f"{target} is no file"
        assert not anchor or anchor in anchors(there), f"{target}: there is no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    """From it, or from the index of a folder that it links to."""
    reached = {DOCS / "README.md"}
    waiting = [*reached]
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text()):
            there = (page.parent / target).resolve()
            if there in PAGES and there not in reached:
                reached.add(there)
                waiting += [there] if there.name == "README.md" else []
    assert not [page.relative_to(DOCS).as_posix() for page in PAGES if page not in reached]


def test_decisions_are_numbered_and_say_what_why_and_compared_with_what() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert all(re.fullmatch(r"\d{3}-", number) for number in numbers)
    assert len(set(numbers)) == len(numbers), "two decisions have one number"
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:3]}: ")
        assert all(f"**{part}.**" in text for part in ("What", "Why", "Compared with")), page.name


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("a_page_of_the_documents")
    module.__file__ = str(page)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, source in blocks(page, "python"):
        tree = ast.parse(source, filename=str(page))
        ast.increment_lineno(tree, line - 1)
        exec(compile(tree, str(page), "exec"), vars(module))
    assert list(tmp_path.iterdir()) == [], "reading the documents leaves no file"


def test_the_diagram_is_the_tables() -> None:
    text = (DOCS / "lifecycle.md").read_text()
    _, _, marked = text.partition("<!-- diagram: made from the table -->\n")
    marked, end, _ = marked.partition("\n<!-- end of diagram -->")
    assert end, "docs/lifecycle.md has lost the markers round its diagram"
    assert marked == f"```mermaid\n{diagram()}```", (
        f"docs/lifecycle.md shows another diagram than the table makes: put between its markers what this prints\n  {REGENERATE}"
    )
    assert REGENERATE in text


def test_the_table_of_commands_names_the_states_in_which_each_is_legal() -> None:
    shown: dict[str, set[str]] = {}
    command = ""
    for cells in rows(DOCS / "lifecycle.md", "| command | who asks | legal in | what follows |"):
        command = cells[0] or command
        shown.setdefault(command, set()).update(re.findall(r"`(\w+)`", cells[2]))
    legal = {kind.__name__.lower(): {state.value for state in row} for kind, row in TABLE.items()}
    assert shown == {"submit": set(), **legal}


def test_the_table_of_settings_is_the_config_class() -> None:
    table = rows(DOCS / "configuration.md", "| field | default | meaning |")
    shown = [(name.strip("`"), ast.literal_eval(default.strip("`"))) for name, default, _ in table]
    assert shown == [(field.name, field.default) for field in fields(Config)]
    assert all(meaning for _, _, meaning in table)


def test_the_table_of_the_job_document_has_every_field() -> None:
    table = rows(DOCS / "http.md", "| field | meaning |")
    shown = [name for cells in table for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(shown) == sorted({wire for _, wire, _ in FIELDS} - {"location"} | {"links"})


def test_the_tables_of_options_are_the_signatures() -> None:
    page = DOCS / "embedding.md"
    text = page.read_text()
    tables = text.split("| option | meaning |")[1:]
    of_handlers, of_routes = (
        {
            name
            for row in re.findall(r"^\| (.+?) \|", table.partition("\n\n")[0], re.MULTILINE)
            for name in names_in(row)
        }
        for table in tables
    )
    options = {"process"} | {field.name for field in fields(Handler)}
    own = {"name", "function", "runs_in", "request_type", "result_type"}
    assert of_handlers == options - own
    keywords = inspect.signature(Callboard.map).parameters.values()
    assert of_routes == {keyword.name for keyword in keywords if keyword.kind is keyword.KEYWORD_ONLY} - {"name"}


def test_the_table_of_job_has_everything_that_a_handler_sees() -> None:
    table = rows(DOCS / "embedding.md", "| name | meaning |")
    shown = {name for cells in table for name in names_in(cells[0])}
    job = Job(id="j", name="N", status=Status.IN_PROGRESS, created_ms=0, updated_ms=0)
    context = JobContext(job, Request(), Reports(lambda: None), lambda: False)
    assert shown == {name for name in dir(context) if not name.startswith("_")}


def test_every_route_is_on_the_page_of_http() -> None:
    app = QuartTrio("routes")
    Callboard(app)
    text = (DOCS / "http.md").read_text()
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith(ENDPOINT_PREFIX)]
    paths = {rule.rule for rule in rules if "unknown" not in rule.endpoint}
    assert {"/jobs", "/jobs/stream", "/jobs/ui"} < paths
    shown = {path.replace("<job_id>", "<id>").replace("<path:queue>", "default") for path in paths}
    assert not [path for path in shown if not re.search(rf"{re.escape(path)}(?![\w/])", text)]


def test_every_action_is_among_the_hooks() -> None:
    _, _, hooks = (DOCS / "embedding.md").read_text().partition("\n## Hooks\n")
    named = set(re.findall(r"`(\w+)`", hooks.partition("\n## ")[0]))
    assert set(get_args(Action)) <= named


def names_in(cell: str) -> set[str]:
    """``a`` of each `a`, `a=1` and `a(b)`."""
    return set(re.findall(r"`(\w+)", cell))


def test_the_promises_of_a_store_are_the_protocols() -> None:
    assert promises((DOCS / "stores.md").read_text()) == promises(protocol.__doc__ or "")


def promises(text: str) -> dict[int, set[str]]:
    """The words of each numbered promise, however they are marked and wrapped."""
    found = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\n\n)", text, re.MULTILINE | re.DOTALL)
    return {int(number): set(re.findall(r"\w+", words.lower())) for number, words in found}


def test_the_skeleton_of_a_store_has_the_protocols_verbs() -> None:
    (skeleton,) = [source for _, source in blocks(DOCS / "stores.md", "python") if "class MyStore" in source]
    namespace: dict[str, Any] = {}
    exec(compile(skeleton, "docs/stores.md", "exec"), namespace)
    mine, theirs = (
        {name: inspect.signature(verb) for name, verb in vars(kind).items() if inspect.iscoroutinefunction(verb)}
        for kind in (namespace["MyStore"], protocol.Store)
    )
    assert mine == theirs
