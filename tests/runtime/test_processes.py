"""Handlers in worker processes, in real ones and on real time: what they see, say and return, and how they end."""

import gc
import logging
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from tests.runtime import process_handlers as functions
from tests.runtime.kit import FaultyStore, opened

from callboard.runtime import (
    Config,
    Handler,
    HandlerError,
    Handlers,
    Job,
    JobContext,
    ProcessJobContext,
    Runtime,
    Status,
)
from callboard.runtime import processes as module
from callboard.runtime.core.job import Request
from callboard.runtime.handlers import make_handler
from callboard.runtime.submission import Submission
from callboard.stores.memory import MemoryDatabase
from callboard.testing import open_virtual_runtime, run_virtual

CONFIG = Config(retry_base_seconds=0.01, progress_interval_seconds=0.02, max_processes=2)

HANDLERS = [
    make_handler(name, getattr(functions, name), process=True, max_retries=1)
    for name in (
        "seen",
        "endless",
        "chatter",
        "bad_report",
        "rude",
        "die",
        "bill",
        "record",
        "model",
        "no_result",
        "nap",
        "noted_nap",
    )
] + [
    make_handler("fail", functions.fail, process=True, max_retries=1, no_retry_on=(LookupError, functions.Unpicklable))
]


def real_ms() -> int:
    return round(time.time() * 1000)


@asynccontextmanager
async def running(
    *more: Handler, config: Config = CONFIG, database: MemoryDatabase | None = None
) -> AsyncIterator[Runtime]:
    store = FaultyStore(database, clock=real_ms)
    async with opened(store, *HANDLERS, *more, config=config) as runtime:
        yield runtime


async def ended(runtime: Runtime, name: str, body: Any = None, **options: Any) -> Job:
    job = await runtime.submit(name, body, **options)
    return await runtime.wait(job.id, timeout_seconds=30)


def result(job: Job) -> Any:
    assert job.status == "Completed", job.error
    return msgspec.json.decode(job.result)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something outside of this process."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether that process runs; one that is dead and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(of: int | None = None) -> set[int]:
    """All children of this process, those that are dead and not yet waited for included, less multiprocessing's resource tracker and what
    other tests have left running for those that follow.
    """
    others = ("resource_tracker", "redis-server", "watcher")
    found = set()
    for thread in Path(f"/proc/{of or os.getpid()}/task").iterdir():
        for child in (thread / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_text()
            if not any(word in command for word in others):
                found.add(int(child))
    return found


async def test_what_a_handler_sees_says_and_returns() -> None:
    request = Request(
        body=msgspec.Raw(b'{"x": [1, 2]}'),
        headers=(("X-Colour", "red"), ("x-colour", "blue")),
        route_params={"number": ("int", 7), "which": ("uuid", "01234567-89ab-7def-8123-456789abcdef")},
        query_params=(("q", "1"), ("q", "2")),
    )
    async with running() as runtime:
        accepted = await runtime.accept(Submission(name="seen", request=request))
        job = await runtime.wait(accepted.job.id, timeout_seconds=30)
        told = result(job)
        assert told.pop("pid") != os.getpid()
        assert told == {
            "body": {"x": [1, 2]},
            "id": job.id,
            "attempt": 1,
            "headers": {"X-Colour": ["red", "blue"]},
            "route": {"number": ["int", "7"], "which": ["UUID", "01234567-89ab-7def-8123-456789abcdef"]},
            "query": {"q": ["1", "2"]},
            "deadline": True,
            "cancel": False,
        }
        assert job.progress is not None
        assert (job.progress.percent, job.progress.message) == (100, "step 4")
        assert msgspec.json.decode(job.progress.data) == {"step": 4}
        lines = [event.log.message for event in await runtime._store.events(job.id, 0, 100) if event.log]
        assert lines == [f"line {step}" for step in range(5)]
        again = result(await ended(runtime, "seen", {}))
        assert again["pid"] in children(), "the worker is kept for the next attempt"


async def test_progress_arrives_while_it_runs() -> None:
    async with running() as runtime:
        job = await runtime.submit("chatter", 10)
        async with runtime.watch(job.id) as told:
            with trio.fail_after(20):
                async for item in told:
                    if getattr(item, "type", "") == "progress":
                        break
        assert (await runtime.get(job.id)).status == "InProgress"
        await runtime.cancel(job.id)


@contextmanager
def at_the_end(runtime: Runtime, job_id: str, look: Callable[[], Any]) -> Iterator[list[Any]]:
    """What ``look`` finds at the very moment that the attempt's end is published."""
    found: list[Any] = []

    def see(events: Any) -> None:
        found.extend(
            look()
            for event in events
            if event.job_id == job_id and event.type == "status" and event.status != "InProgress"
        )

    runtime.on_events.append(see)
    yield found


async def pids(notes: Path) -> list[int]:
    """The process ids of the worker and of what it has started, once it runs."""
    await until(notes.exists)
    return [int(pid) for pid in notes.read_text().split()]  # noqa: ASYNC240


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_process_that_is_told_to_stop_is_dead_with_all_that_it_started_before_anyone_says_so(
    how: str, tmp_path: Path
) -> None:
    async with running() as runtime:
        # The worker has started, and the time is not spent on that.
        await ended(runtime, "nap", 0)
        timeout = 2.5 if how == "timeout" else None
        job = await runtime.submit("endless", str(tmp_path / "notes"), timeout_seconds=timeout, max_retries=0)
        all_of_them = await pids(tmp_path / "notes")
        assert [is_alive(pid) for pid in all_of_them] == [True, True, True]
        with at_the_end(runtime, job.id, lambda: [is_alive(pid) for pid in all_of_them]) as found:
            if how == "cancel":
                asked = trio.current_time()
                await runtime.cancel(job.id)
            stopped = await runtime.wait(job.id, timeout_seconds=10)
        assert found == [[False, False, False]]
        if how == "cancel":
            assert stopped.status == "Canceled"
            assert trio.current_time() - asked < 1
        else:
            assert stopped.error is not None
            assert stopped.error.code == "TIMEOUT"
        assert result(await ended(runtime, "nap", 0))


async def test_a_drain_ends_the_process_and_hands_the_job_back(tmp_path: Path) -> None:
    database = MemoryDatabase()
    config = msgspec.structs.replace(CONFIG, drain_seconds=0.3)
    async with running(config=config, database=database) as runtime:
        job = await runtime.submit("endless", str(tmp_path / "notes"))
        all_of_them = await pids(tmp_path / "notes")
        with at_the_end(runtime, job.id, lambda: [is_alive(pid) for pid in all_of_them]) as found:
            began = trio.current_time()
            await runtime.drain()
            assert trio.current_time() - began < 2
    assert found == [[False, False, False]]
    assert children() == set()
    async with running(config=msgspec.structs.replace(config, max_concurrent_jobs=0), database=database) as runtime:
        assert (await runtime.get(job.id)).status == "Queued"


async def test_a_lost_lease_ends_the_process(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, lease_seconds=3, drain_seconds=0.3)
    store = FaultyStore(clock=real_ms)
    async with opened(store, *HANDLERS, config=config) as runtime:
        await runtime.submit("endless", str(tmp_path / "notes"))
        all_of_them = await pids(tmp_path / "notes")
        store.fail("extend")
        await until(lambda: not any(is_alive(pid) for pid in all_of_them))
        store.mend()


async def test_reports_in_a_tight_loop_are_bounded_and_the_newest_wins() -> None:
    async with running(config=msgspec.structs.replace(CONFIG, max_events_per_job=100_000)) as runtime:
        job = await ended(runtime, "chatter", 1)
        count = result(job)
        assert count > 5000
        assert job.progress is not None
        assert msgspec.json.decode(job.progress.data) == {"count": count}
        events = await runtime._store.events(job.id, 0, 100_000)
        assert len([event for event in events if event.type == "progress"]) < 100
        assert any(event.log and "log lines were dropped" in event.log.message for event in events)
        assert events[-1].status == "Completed"


@pytest.mark.parametrize("which", ["percent", "data", "level"])
async def test_a_report_that_cannot_be_is_refused_in_the_handler(which: str) -> None:
    async with running() as runtime:
        job = await ended(runtime, "bad_report", which, max_retries=0)
        assert job.error is not None
        assert (job.error.code, job.error.type) == ("HANDLER_ERROR", "ValueError")


@pytest.mark.parametrize("how", ["garbage", "huge", "level", "long line", "closed", "forked and gone"])
async def test_what_no_worker_may_send_costs_its_own_attempt_only(how: str) -> None:
    async with running() as runtime:
        with trio.fail_after(10):
            job = await ended(runtime, "rude", how, max_retries=0)
        assert job.error is not None
        assert (job.error.code, job.error.type, job.error.retryable) == ("WORKER_LOST", "ProcessDied", True)
        assert result(await ended(runtime, "nap", 0))


@pytest.mark.parametrize(
    ("how", "cause"), [("exit", "exit code 3"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV")], ids=lambda value: value
)
async def test_a_worker_that_dies_fails_its_attempt_which_is_tried_again(
    how: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as runtime:
        job = await ended(runtime, "die", how)
        assert result(job) == "alive"
        assert (job.attempt, job.retry_count) == (2, 1)
    (record,) = [record for record in caplog.records if record.name == "callboard.jobs" and record.levelno > 10]
    assert "WORKER_LOST" in record.getMessage()
    assert record.exc_info is not None
    assert cause in str(record.exc_info[1])


async def raised(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, how: str, **options: Any
) -> tuple[Job, BaseException]:
    """The ended job, and the exception as it was logged."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "callboard.jobs"):
        job = await ended(runtime, "fail", how, **options)
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info and record.name == "callboard.jobs"]
    assert errors[0] is not None
    return job, errors[0]


async def test_exceptions_come_back_with_chain_notes_and_lines(caplog: pytest.LogCaptureFixture) -> None:
    async with running(config=msgspec.structs.replace(CONFIG, expose_error_messages=True)) as runtime:
        job, error = await raised(runtime, caplog, "chain")
        assert job.error is not None
        assert (job.error.type, job.error.message, job.retry_count) == ("Unpicklable", "1 and 2", 0)
        text = "".join(traceback.format_exception(error))
        for part in (
            "KeyError: 'missing'",
            "a note on the cause",
            "The above exception was the direct cause",
            'process_handlers.py", line',
            "in fail\n    raise Unpicklable(1, 2) from error",
            "process_handlers.Unpicklable: 1 and 2",
        ):
            assert part in text, text
        assert "callboard/runtime/child.py" not in text
        assert isinstance(error.__cause__, Exception)
        (attempt,) = await runtime.attempts(job.id)
        raised_there, cause = attempt.exceptions[:2]
        assert (raised_there.type.rpartition(".")[2], raised_there.message) == ("Unpicklable", "1 and 2")
        assert (cause.type, cause.message, cause.relation, cause.notes) == (
            "KeyError",
            "'missing'",
            "cause",
            ("a note on the cause",),
        )
        assert "raise Unpicklable(1, 2) from error" in raised_there.traceback
        job, error = await raised(runtime, caplog, "deep", max_retries=0)
        assert job.error is not None
        assert job.error.type == "RecursionError"
        assert len(traceback.extract_tb(error.__traceback__)) < 80
        job, error = await raised(runtime, caplog, "textless", max_retries=0)
        assert job.error is not None
        assert (job.error.type, str(error)) == ("Textless", "")


async def test_what_an_exception_means_is_as_in_any_handler(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as runtime:
        job, error = await raised(runtime, caplog, "stock")
        assert job.error is not None
        assert (job.error.code, job.error.message, job.error.type) == ("OUT_OF_STOCK", "tea is gone", "OutOfStock")
        assert (job.error.retryable, job.retry_count) == (True, 1)
        job, error = await raised(runtime, caplog, "group", max_retries=0)
        assert job.error is not None
        assert job.error.code == "OUT_OF_STOCK"
        assert isinstance(error, ExceptionGroup)
        assert str(error.exceptions[0]) == "first"
        assert result(await ended(runtime, "fail", "wait")) is None
        for how, kind in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")):
            job = await ended(runtime, "fail", how, max_retries=0)
            assert job.error is not None
            assert job.error.type == kind


def place(job: Job, bill: functions.Bill) -> str:
    assert isinstance(bill, functions.Bill), bill
    return f"/bills/{bill.bill_number}/{os.getpid()}"


async def test_results_of_every_type_and_a_location_made_here() -> None:
    placed = make_handler("placed", functions.bill, process=True, location=place, priority=lambda number: number)
    async with running(placed) as runtime:
        job = await ended(runtime, "placed", 7)
        assert result(job) == {"billNumber": 7, "lines": ["tea"]}
        assert (job.location, job.priority) == (f"/bills/7/{os.getpid()}", 7)
        assert result(await ended(runtime, "record", 7)) == {"bill_number": 7}
        assert result(await ended(runtime, "model", {"billNumber": 7})) == {"billNumber": 7}


async def test_results_that_cannot_be_kept() -> None:
    async with running(config=msgspec.structs.replace(CONFIG, max_result_bytes=1000)) as runtime:
        for which, code in (("object", "NOT_ENCODABLE"), ("leaving", "NOT_ENCODABLE"), ("large", "TOO_LARGE")):
            job = await ended(runtime, "no_result", which)
            assert job.error is not None
            assert (job.error.code, job.retry_count) == (f"RESULT_{code}", 0)


async def test_as_many_at_once_as_processes_and_nobody_else_waits_for_them() -> None:
    async def quick(job: JobContext) -> None: ...

    async with running(make_handler("quick", quick)) as runtime:
        jobs = [await runtime.submit("nap", 0.3) for _ in range(6)]
        await until(lambda: runtime.stats().running == 2)
        for _ in range(20):
            assert (await ended(runtime, "quick")).status == "Completed"
        statuses = [(await runtime.get(job.id)).status for job in jobs]
        assert statuses.count(Status.QUEUED) >= 2, "what cannot run is not claimed"
        spans = [result(await runtime.wait(job.id, timeout_seconds=20)) for job in jobs]
        for begun, _ in spans:
            assert sum(one <= begun < other for one, other in spans) <= 2
        assert len(children()) <= 2


async def test_slots_count_too_and_the_highest_priority_comes_first() -> None:
    order: list[int] = []

    async def other(job: JobContext, number: int) -> None:
        order.append(number)

    config = msgspec.structs.replace(CONFIG, max_concurrent_jobs=1)
    store = FaultyStore(clock=real_ms)
    async with opened(store, *HANDLERS, make_handler("other", other), config=config, claims=False) as runtime:
        late = await runtime.submit("other", 1, priority=1)
        nap = await runtime.submit("nap", 0.1, priority=2)
        await runtime.submit("other", 3, priority=3)
        runtime.begin_claiming()
        result(await runtime.wait(nap.id, timeout_seconds=20))
        assert order == [3]
        assert (await runtime.wait(late.id, timeout_seconds=10)).status == "Completed"
        assert order == [3, 1]


async def test_nothing_is_left_when_the_runtime_has_ended(tmp_path: Path) -> None:
    async def life(number: int) -> None:
        async with running() as runtime:
            await ended(runtime, "nap", 0)
            await ended(runtime, "die", "kill")
            job = await runtime.submit("endless", str(tmp_path / f"notes-{number}"))
            await pids(tmp_path / f"notes-{number}")
            await runtime.cancel(job.id)
            await runtime.wait(job.id, timeout_seconds=10)
            closing = trio.current_time()
        assert trio.current_time() - closing < 2
        assert children() == set()

    open_after: list[int] = []  # one descriptor left by a life makes every number higher than the one before
    for number in range(4):
        await life(number)
        with trio.move_on_after(5):  # what a worker that was killed leaves to a thread to close
            while open_after and len(os.listdir("/proc/self/fd")) > open_after[-1]:
                gc.collect()
                await trio.sleep(0.05)
        open_after.append(len(os.listdir("/proc/self/fd")))
    assert any(later <= earlier for earlier, later in pairwise(open_after)), open_after


async def test_a_signal_to_all_processes_leaves_the_end_to_the_runtime(tmp_path: Path) -> None:
    """As systemd does it, and Ctrl-C: what runs in workers gets its time to drain."""
    async with running() as runtime:
        job = await runtime.submit("noted_nap", str(tmp_path / "notes"))
        await until(lambda: (notes := tmp_path / "notes").exists() and bool(notes.read_text()))
        for pid in children():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
        stopped = await runtime.wait(job.id, timeout_seconds=10)
        assert (stopped.status, stopped.attempt) == ("Completed", 1)


async def test_no_process_can_be_started_now_but_later(monkeypatch: pytest.MonkeyPatch) -> None:
    listening, calls = module._listening, []

    def refusing() -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(24, "Too many open files")
        return listening()

    monkeypatch.setattr(module, "_listening", refusing)
    async with running() as runtime:
        job = await ended(runtime, "nap", 0)
        assert (job.status, job.attempt) == ("Completed", 2)


async def test_strangers_on_the_socket_learn_nothing_and_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_SECONDS", 0.3)
    async with running() as runtime:
        await ended(runtime, "nap", 0)
        address = runtime._workers._address
        for said in (
            b"",
            b"\xff\xff\xff\xff",
            (5).to_bytes(4) + b"x" * 5,
            (23).to_bytes(4) + b'{"token":"no","pid":12}',
        ):
            stranger = trio.socket.socket(trio.socket.AF_UNIX)
            with trio.fail_after(5), stranger:
                await stranger.connect(address)
                await stranger.send(said)
                assert await stranger.recv(100) == b""
        assert result(await ended(runtime, "nap", 0))


def test_virtual_runtimes_run_them_in_place() -> None:
    async def scenario() -> None:
        async with open_virtual_runtime(HANDLERS) as board:
            job = await board.submit("seen", {"x": 1})
            await board.drain()
            stored = await board.get(job.id)
            assert result(stored)["pid"] == os.getpid()
            assert stored.progress is not None
            assert stored.progress.percent == 100

    run_virtual(scenario)


# What is refused


class Maker:
    """Its functions are no functions of a module."""

    def method(self, job: ProcessJobContext) -> None: ...

    @staticmethod
    def static(job: ProcessJobContext) -> None: ...

    def __call__(self, job: ProcessJobContext) -> None: ...


async def coroutine(job: ProcessJobContext) -> None: ...


def nested() -> Callable[[ProcessJobContext], None]:
    def inner(job: ProcessJobContext) -> None: ...

    return inner


def made_up() -> Callable[..., None]:
    namespace: dict[str, Any] = {"__name__": "never_imported"}
    exec("def nowhere(job): ...", namespace)
    return namespace["nowhere"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (coroutine, "is async"),
        (lambda job: None, "is a lambda"),
        (nested(), "is a nested function"),
        (Maker.method, "is a method"),
        (Maker.static, "is a method"),
        (Maker().method, "is a method and no function"),
        (Maker(), "is a Maker and no function"),
        (partial(functions.bill, number=1), "is a partial and no function"),
        (made_up(), "is in 'never_imported', which a child process cannot import"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_child_could_not_import_is_refused_at_once(function: Any, words: str) -> None:
    handlers = Handlers()
    with pytest.raises(HandlerError, match=words):
        handlers.handler("odd", process=True)(function)
    assert len(handlers) == 0


def test_process_is_true_or_false() -> None:
    with pytest.raises(HandlerError, match="process is 1: give True or False"):
        make_handler("odd", functions.bill, process=1)  # type: ignore[arg-type]


def shadowed(job: ProcessJobContext) -> None: ...


async def test_a_name_that_leads_elsewhere_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = make_handler("shadowed", shadowed, process=True)
    monkeypatch.setitem(globals(), "shadowed", None)
    with pytest.raises(HandlerError, match="a child process would not find it"):
        async with running(handler):
            pass
