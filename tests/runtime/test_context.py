"""What a handler sees of its job, and what it may say."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio
from tests.runtime.kit import FaultyStore, follow, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, Event, JobContext, Params, Request, Submission
from callboard.runtime.context import MAX_PENDING_LOGS, MAX_TEXT
from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.job import Progress


async def test_everything_that_was_asked_is_there(autojump_clock: MockClock) -> None:
    seen: dict[str, Any] = {}

    @handler(timeout_seconds=60)
    async def work(job: JobContext) -> None:
        seen.update({name: getattr(job, name) for name in vars(job) if not name.startswith("_")})
        seen["cancel_requested"] = job.cancel_requested

    number = uuid.UUID(int=9)
    request = Request(
        headers=(("X-Tag", "a"), ("x-tag", "b"), ("Accept", "c")),
        query_params=(("q", "1"), ("q", "2"), ("Q", "3")),
        route_params={"number": ("int", 5), "thing": ("uuid", str(number)), "path": ("path", "a/b")},
    )
    async with opened(None, work) as runtime:
        job = (await runtime.accept(Submission(name="work", request=request))).job
        ended = await runtime.wait(job.id)
    assert (seen["id"], seen["name"], seen["attempt"]) == (job.id, "work", 1)
    assert seen["route_params"] == {"number": 5, "thing": number, "path": "a/b"}
    assert seen["headers"]["X-TAG"] == "a"
    assert seen["headers"].getlist("x-tag") == ["a", "b"]
    assert dict(seen["query_params"]) == {"q": "1", "Q": "3"}
    assert ended.started_ms is not None
    assert seen["deadline"] == datetime.fromtimestamp(ended.started_ms / 1000, UTC) + timedelta(seconds=60)
    assert seen["cancel_requested"] is False


def test_params() -> None:
    exact = Params((("a", "1"), ("A", "2"), ("a", "3")))
    assert (exact["a"], exact["A"], len(exact), list(exact)) == ("1", "2", 2, ["a", "A"])
    assert exact.getlist("a") == ["1", "3"]
    assert exact.getlist("b") == []
    assert exact.get("b") is None
    assert "b" not in exact
    assert repr(exact) == "Params({'a': '1', 'A': '2'})"
    folded = Params((("Accept", "1"), ("ACCEPT", "2")), ignore_case=True)
    assert ("accept" in folded, len(folded), folded.getlist("aCCEPT")) == (True, 1, ["1", "2"])
    with pytest.raises(KeyError):
        exact["b"]
    exact.getlist("a").append("changed")
    assert exact.getlist("a") == ["1", "3"]


async def test_no_deadline(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> str:
        return str(job.deadline)

    async with opened(None, work, config=Config(timeout_seconds=None)) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id)
    assert bytes(ended.result) == b'"None"'


PERCENT = "percent is .*: give a number from 0 to 100"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percent": -0.001}, PERCENT),
        ({"percent": 100.1}, PERCENT),
        ({"percent": float("nan")}, PERCENT),
        ({"percent": float("inf")}, PERCENT),
        ({"percent": 10**400}, PERCENT),
        ({"percent": True}, PERCENT),
        ({"percent": "50"}, PERCENT),
        ({"message": 5}, "message is 5: give a text"),
        ({"data": object()}, "data has no JSON form"),
        ({"data": {"deep": [object()]}}, "data has no JSON form"),
        ({"data": "\udcff"}, "data has no JSON form"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
async def test_progress_that_cannot_be_meant(
    autojump_clock: MockClock, arguments: dict[str, Any], message: str
) -> None:
    @handler()
    async def work(job: JobContext) -> str:
        await job.progress(50, "fine")
        with pytest.raises(ValueError, match=message):
            await job.progress(**arguments)
        return "went on"

    async with opened(None, work) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id)
    assert bytes(ended.result) == b'"went on"'
    assert ended.progress == Progress(percent=50, message="fine")


@pytest.mark.parametrize("percent", [None, 0, 0.0, 33.3, 100])
async def test_progress_as_it_is_told(autojump_clock: MockClock, percent: float | None) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        await job.progress(percent, "m" * 20_000, {"files": [1, 2]})

    async with opened(None, work) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id)
    assert ended.progress is not None
    assert ended.progress.percent == percent
    assert ended.progress.message == "m" * MAX_TEXT
    assert msgspec.json.decode(ended.progress.data) == {"files": [1, 2]}


async def test_progress_is_a_checkpoint(autojump_clock: MockClock) -> None:
    @handler(timeout_seconds=5)
    async def work(job: JobContext) -> None:
        await trio.sleep(4.5)
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        await job.progress(1)
        raise AssertionError("no checkpoint")

    async with opened(None, work, config=Config(max_retries=0)) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id)
    assert ended.error is not None
    assert ended.error.code == "TIMEOUT"


async def test_log_lines_come_in_order_and_with_their_levels(autojump_clock: MockClock) -> None:
    levels = ("debug", "info", "warning", "error", "critical")

    @handler()
    async def work(job: JobContext) -> None:
        for level in levels:
            job.log(level, f"a {level} line")
        with pytest.raises(ValueError, match="the level is 'loud': give one of debug, info, warning, error, critical"):
            job.log("loud", "x")
        job.log("info", "m" * 20_000)

    async with opened(None, work) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id)
        told = await follow(runtime, job.id, after=0)
    logs = [item.log for item in told if isinstance(item, Event) and item.log]
    assert logs[:-1] == [LogEntry(level, f"a {level} line") for level in levels]
    assert len(logs[-1].message) == MAX_TEXT


async def test_flood_of_log_lines_is_bounded_and_says_so(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        for number in range(MAX_PENDING_LOGS + 50):
            job.log("info", str(number))

    async with opened(None, work, config=Config(max_events_per_job=5000)) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id)
        told = await follow(runtime, job.id, after=0)
    logs = [item.log for item in told if isinstance(item, Event) and item.log]
    assert len(logs) == MAX_PENDING_LOGS + 1
    assert logs[0].level == "warning"
    assert logs[0].message.startswith("50 log lines were dropped")
    assert logs[-1].message == str(MAX_PENDING_LOGS + 49)


async def test_handler_may_ask_whether_it_is_to_stop(autojump_clock: MockClock) -> None:
    seen: list[bool] = []

    @handler()
    async def work(job: JobContext) -> None:
        with trio.move_on_after(1):  # its own scope that is over says nothing about the job
            try:
                await trio.sleep_forever()
            finally:
                seen.append(job.cancel_requested)
        try:
            await trio.sleep_forever()
        finally:
            seen.append(job.cancel_requested)
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                seen.append(job.cancel_requested)

    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(5)
        await runtime.cancel(job.id)
        await runtime.wait(job.id)
    assert seen == [False, True, True]


@pytest.mark.parametrize("why", ["timeout", "drain", "lease"])
async def test_handler_is_told_to_stop_for_whatever_reason(autojump_clock: MockClock, why: str) -> None:
    seen: list[bool] = []

    @handler(timeout_seconds=5 if why == "timeout" else 500, max_retries=0)
    async def work(job: JobContext) -> None:
        seen.append(job.cancel_requested)
        try:
            await trio.sleep(100)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                seen.append(job.cancel_requested)

    store = FaultyStore()
    async with opened(store, work) as runtime:
        await runtime.submit("work")
        await trio.sleep(1)
        if why == "lease":
            store.fail(seconds=40)
        if why != "drain":
            await trio.sleep(45)
    assert seen[:2] == [False, True]
