"""docs/security.md and docs/operations.md against the code: bounds and defaults, options, metrics, log lines, times that must fit."""

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from msgspec.structs import fields as struct_fields
from quart_trio import QuartTrio
from tests.test_docs import DOCS, blocks, rows

from callboard.runtime import Config
from callboard.stores import sqlite_file
from callboard.web import Callboard
from callboard.web.cli import THREADS_SECONDS, serve, worker
from callboard.web.ending import MARGIN_SECONDS
from callboard.web.server_options import ServerOptions
from callboard.web.submission import UNSTORED_HEADERS

SECURITY = (DOCS / "security.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
SOURCES = [path for folder in ("runtime", "stores", "web") for path in (DOCS.parent / folder).rglob("*.py")]

END_SECONDS = MARGIN_SECONDS + THREADS_SECONDS
"""From the end of the drain to the end of the process, at most; the second for threads of the app's own."""

BOUNDS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for table in SECURITY.split("| what | default | set by | at the bound |\n|---|---|---|---|\n")[1:]
    for line in table.partition("\n\n")[0].splitlines()
]
CONFIG = {field.name: field.default for field in struct_fields(Config)}
OPTIONS = {field.name: field.default for field in fields(ServerOptions)}
QUART = QuartTrio("defaults").config


def one(pattern: str, text: str = OPERATIONS) -> str:
    """The one place of the text that the pattern's group finds."""
    found: str
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


def set_by(cell: str) -> tuple[str, Any] | None:
    """The name and the value of what sets a bound; None for one that only the text knows."""
    if found := re.match(r"`(Config|ServerOptions)\.(\w+)`", cell):
        return found[0], (CONFIG if found[1] == "Config" else OPTIONS)[found[2]]
    if found := re.match(r"`((?:web|runtime)\.[\w.]+)\.([A-Z_]+)`", cell):
        return found[0], getattr(importlib.import_module(f"callboard.{found[1]}"), found[2])
    if found := re.match(r"Quart's `([A-Z_]+)`", cell):
        return found[0], QUART[found[1]]
    return None


def test_the_tables_of_bounds_have_the_defaults_of_the_code() -> None:
    checked = 0
    for what, default, setting, _ in BOUNDS:
        known = set_by(setting)
        told = re.match(r"`([^`]+)`", default)
        assert (known is None) == (told is None), (
            f"{what}: a number in backticks is compared with the code, another is not"
        )
        if known is not None and told is not None:
            assert ast.literal_eval(told[1]) == known[1], f"{what}: {known[0]} is {known[1]}"
            checked += 1
    assert checked > 35


def test_every_bound_that_can_be_set_is_in_the_tables() -> None:
    shown = {known[0].strip("`") for _, _, setting, _ in BOUNDS if (known := set_by(setting))}
    settings = {f"ServerOptions.{name}" for name in OPTIONS if name.startswith("max_") or name.endswith("_seconds")}
    settings |= {f"Config.{name}" for name in CONFIG if name.startswith("max_")}
    # How long the end is put off is no bound.
    assert settings - {"ServerOptions.lead_seconds"} <= shown


def test_the_headers_that_are_not_stored_are_named() -> None:
    row = one(r"^\| request headers \|(.*)\|$", SECURITY)
    assert {name.lower() for name in re.findall(r"`([A-Z][\w-]+)`", row)} == UNSTORED_HEADERS


def test_options_of_the_command_line_are_there() -> None:
    assert isinstance(serve, click.Command) and isinstance(worker, click.Command)
    options = [*serve.params, *worker.params]
    known = {name for parameter in options for name in (*parameter.opts, *parameter.secondary_opts)}
    others = {
        "--keep-alive",  # Hypercorn
        *("--init", "--interval", "--start-period", "--timeout"),  # Docker
        *("--no-cache-dir", "--system", "--uid"),  # pip, useradd
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SECURITY + OPERATIONS))
    assert "--lead-seconds" in named
    assert named - others <= known


def test_metrics_are_those_of_telemetry() -> None:
    table = (DOCS / "telemetry.md").read_text().partition("| metric | kind |")[2].partition("\n\n")[0]
    known = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    named = set(re.findall(r"\b(callboard_\w+)", OPERATIONS + SECURITY))
    assert len(named) > 8
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= known


def test_log_lines_are_those_of_the_code() -> None:
    table = rows(DOCS / "operations.md", "| line of the log | of | means |")
    assert len(table) > 5
    for line, logger, meaning in table:
        for text in re.findall(r"`([^`]+)`", line + meaning):
            if text.startswith("job.") or text == "authorize":
                continue
            found = [path for path in SOURCES if text in path.read_text()]
            assert found, f"no log line says {text!r}"
            if logger:
                assert any(f'getLogger("{logger.strip("`")}")' in path.read_text() for path in found), text


def test_the_filesystems_that_are_refused_are_named() -> None:
    row = one(r"(?s)\* \*\*Filesystem\*\*: (.*?)refused at the start")
    named = set(re.findall(r"`([\w*]+)`", row))
    refused = {name.removeprefix("fuse.") for name in sqlite_file._NETWORK}
    assert named == {*refused, "smb*"}


def test_every_path_is_a_route() -> None:
    app = QuartTrio("routes")
    Callboard(app)
    rules = {rule.rule.replace("<job_id>", "<id>") for rule in app.url_map.iter_rules()}
    named = set(re.findall(r"/jobs(?:/[\w<>.]+)+", SECURITY + OPERATIONS))
    assert "/jobs/health/live" in named
    assert named <= rules


def test_times_fit_each_other() -> None:
    drain, end = Config().drain_seconds, Config().drain_seconds + END_SECONDS
    lead = int(one(r'--lead-seconds, "(\d+)"'))
    assert int(one(r"terminationGracePeriodSeconds: (\d+)")) > lead + end
    assert int(one(r"^TimeoutStopSec=(\d+)")) > end
    assert int(one(r"`docker stop -t (\d+)`")) > end
    assert int(one(r"`stop_grace_period: (\d+)s`")) > end
    assert f"`drain_seconds` D ({drain} s)" in OPERATIONS
    cleanup = Config().cleanup_seconds
    assert cleanup == 5 and f"so L + {drain - cleanup:g} |" in OPERATIONS


def test_the_proxy_fits_the_server() -> None:
    (text,) = [source for _, source in blocks(DOCS / "operations.md", "nginx")]
    assert int(one(r"^ +keepalive_timeout (\d+)s;", text)) < ServerOptions().keep_alive_seconds
    read_seconds = int(one(r"proxy_read_timeout (\d+)s;", text))
    assert read_seconds > Config().max_wait_seconds and read_seconds > ServerOptions().ping_seconds
    assert int(one(r"client_max_body_size (\d+)m;", text)) * 2**20 > Config().max_bulk_body_bytes


def unit() -> str:
    (text,) = [source for _, source in blocks(DOCS / "operations.md", "ini") if "[Service]" in source]
    return text


def test_the_unit_allows_what_the_server_needs() -> None:
    parser = ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit())
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert int(service["LimitNOFILE"]) > ServerOptions().max_connections
    assert int(service["UMask"], 8) == 0o077
    # Every line that the table explains is in the unit.
    table = OPERATIONS.partition("| line | why |\n|---|---|\n")[2].partition("\n\n")[0]
    for name in re.findall(r"`(\w+)(?:=\w+)?`", " ".join(line.split("|")[1] for line in table.splitlines())):
        assert name in service, name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """It complains of unknown lines and values; the program and the user are such as there are here."""
    service = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit(), flags=re.MULTILINE)
    service = service.replace("User=shop", f"User={os.getuid()}").replace("/srv/shop", str(tmp_path))
    (listening,) = [source for _, source in blocks(DOCS / "operations.md", "ini") if "[Socket]" in source]
    for name, text in (("shop.service", service), ("shop.socket", listening)):
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "shop.service"), str(tmp_path / "shop.socket")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    complaints = [line for line in checked.stderr.splitlines() if "shop." in line]
    assert not complaints, complaints


def test_every_upstream_fault_names_a_page_and_what_mends_it() -> None:
    upstream = DOCS / "upstream"
    mends = rows(upstream / "README.md", "| fault | of | known as | mended here by |")
    told = {one(r"\]\(([\w-]+\.md)\)", fault) for fault, *_ in mends}
    assert told == {page.name for page in upstream.glob("*.md")} - {"README.md"}
    for fault, _, _, mend in mends:
        module = "callboard.web.hypercorn_fixes"
        for name in re.findall(r"`([\w./]+)`", mend):
            if name.startswith("web/"):
                module = "callboard." + name.removesuffix(".py").replace("/", ".")
                assert pkgutil.resolve_name(module)
            else:
                assert pkgutil.resolve_name(name if name.startswith("callboard.") else f"{module}:{name}"), fault
