"""docs/scaling.md against the programs: commands, configuration of Redis and Sentinel, units, containers, names of metrics and fields."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from tests.redis_servers import RedisServer, RedisServers, Sentinel, info
from tests.test_docs import DOCS, blocks, rows

from callboard.stores import open_store
from callboard.stores.redis_url import RedisSettings
from callboard.web.cli import main

PAGE = DOCS / "scaling.md"
TEXT = PAGE.read_text()


def directives(text: str) -> dict[str, Any]:
    """The lines of a configuration of Redis, as ``RedisServer`` takes them."""
    return {name.replace("-", "_"): value for name, value in (line.split(maxsplit=1) for line in text.splitlines())}


def commands(text: str) -> list[list[str]]:
    """The words of each ``callboard serve`` and ``callboard worker`` that stands there."""
    shown = re.findall(r"(?:^ExecStart=\S*/|`)(callboard (?:serve|worker) .*?)(?:`|$)", text, re.MULTILINE)
    listed = [json.loads(words) for words in re.findall(r"^    command: (\[.*\])$", text, re.MULTILINE)]
    return [*(shlex.split(line) for line in shown), *(words for words in listed if words[0] == "callboard")]


def test_every_command_can_be_meant() -> None:
    """Parsed by the program's own parser, up to the point where it would begin."""
    found = commands(TEXT)
    assert len(found) > 10
    assert isinstance(main, click.Group)
    for _, name, *arguments in found:
        command = main.commands[name]
        context = command.make_context(name, list(arguments))
        assert context.params["target"] == "shop.main:app"
        if context.params["store"] is not None:
            open_store(context.params["store"])


def test_every_url_is_one_of_a_store() -> None:
    urls = re.findall(r"`((?:sqlite|rediss?(?:\+\w+)?)://[^`\s]+/?[^`\s]*)`", TEXT)
    assert {url.partition(":")[0] for url in urls} >= {"sqlite", "redis", "rediss", "redis+sentinel", "redis+cluster"}
    for url in urls:
        if url.startswith("sqlite"):
            open_store(url)
        else:
            assert (
                RedisSettings.of_url(url).kind == (re.findall(r"\+(\w+)", url.partition(":")[0]) or ["standalone"])[0]
            )


async def test_redis_takes_the_configuration_and_callboard_the_server(
    redis_servers: RedisServers, caplog: pytest.LogCaptureFixture
) -> None:
    (shown,) = [source for _, source in blocks(PAGE, "text") if "appendonly" in source]
    config = directives(shown)
    assert config["maxmemory_policy"] == "noeviction"
    server = redis_servers.server(**config)
    store = open_store(server.url)
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=10)
    await store.aclose()
    assert caplog.records == [], "nothing to warn of"


def test_the_same_in_a_container(tmp_path: Path) -> None:
    (words,) = [json.loads(found) for found in re.findall(r'^    command: (\["redis-server".*\])$', TEXT, re.MULTILINE)]
    pairs = dict(zip([word.removeprefix("--") for word in words[1::2]], words[2::2], strict=True))
    assert pairs["maxmemory-policy"] == "noeviction" and pairs["appendonly"] == "yes"
    config = directives("\n".join(f"{name} {value}" for name, value in pairs.items()))
    with RedisServer(tmp_path / "redis", **config) as server:
        assert server.run("CONFIG", "GET", "appendonly") == {"appendonly": "yes"}


def test_sentinel_takes_the_configuration(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "master", **directives(indented("min-replicas-to-write"))) as master:
        lines = [line.split(maxsplit=2) for line in indented("sentinel monitor").splitlines()[1:]]
        told = {name: rest.split(maxsplit=1)[1] for _, name, rest in lines if name != "monitor"}
        (monitor,) = [rest for _, name, rest in lines if name == "monitor"]
        assert re.fullmatch(r"shop \S+ 6379 2", monitor)
        assert set(told) == {"down-after-milliseconds", "failover-timeout"}
        with Sentinel(tmp_path / "sentinel", master, told, None) as sentinel:
            assert sentinel.master_port() == master.port


def indented(word: str) -> str:
    """The one indented block that begins a line with it."""
    found = re.findall(r"\n\n((?:    [^\n]+\n)+)", TEXT)
    (block,) = [one for one in found if re.search(rf"^    {word}", one, re.MULTILINE)]
    return re.sub(r"^    ", "", str(block), flags=re.MULTILINE)


def test_the_fields_of_info_are_told_by_a_server(redis_servers: RedisServers) -> None:
    master = redis_servers.server(fsync="everysec")
    replica = redis_servers.server(replicaof=f"127.0.0.1 {master.port}")
    told = {**info(replica, "everything"), **info(master, "everything"), "slave0": "once it is there"}
    named = {name for cells in rows(PAGE, "| `INFO` of Redis | means |") for name in re.findall(r"`(\w+)`", cells[0])}
    named -= {"ok"}
    assert len(named) > 12
    assert not named - set(told) - {"maxclients"}
    assert master.run("CONFIG", "GET", "maxclients")


def test_metrics_are_those_of_telemetry() -> None:
    table = (DOCS / "telemetry.md").read_text().partition("| metric | kind |")[2].partition("\n\n")[0]
    known = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    named = set(re.findall(r"\b(callboard_\w+)", TEXT))
    assert len(named) > 5
    assert named <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It complains of unknown lines and values; the program and the user are such as there are here."""
    ((_, unit),) = blocks(PAGE, "ini")
    unit = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit, flags=re.MULTILINE)
    unit = unit.replace("User=shop", f"User={os.getuid()}").replace("/srv/shop", str(tmp_path))
    unit = unit.replace("EnvironmentFile=", "EnvironmentFile=-")
    (tmp_path / "shop-worker@.service").write_text(unit)
    shutil.copy(tmp_path / "shop-worker@.service", tmp_path / "shop-worker@1.service")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "shop-worker@1.service")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    complaints = [line for line in checked.stderr.splitlines() if "shop-worker" in line]
    assert not complaints, complaints


def test_the_keys_of_a_space_are_removed_by_hand(redis_server: RedisServer) -> None:
    """The line of docs/stores.md."""
    (line,) = re.findall(r"`(redis-cli --scan .*?)`", (DOCS / "stores.md").read_text())
    for number in range(250):
        redis_server.run("SET", f"{{callboard}}:job:{number}", "x")
    redis_server.run("SET", "{callboard}:key:with 'quotes' and spaces", "x")
    redis_server.run("SET", "{other}:job:1", "x")
    command = line.replace("redis-cli", f"redis-cli -p {redis_server.port}")
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True, capture_output=True, timeout=60)
    assert redis_server.run("KEYS", "*") == ["{other}:job:1"]
