"""Every state x every command, held against the wire contract's list, and the rules that the table alone does not show."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core.commands import (
    Cancel,
    Claim,
    Command,
    Fail,
    Lapse,
    Release,
    Report,
    Retry,
    Stop,
    Succeed,
)
from callboard.runtime.core.document import changes
from callboard.runtime.core.errors import IllegalTransition
from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.job import LIVE, NULL, TERMINAL, WAITING, Failure, Job, Progress, Status
from callboard.runtime.core.transition import TABLE, WORKER_LOST, Change, accept, decide, diagram

Q, S, P, C, F, X = Status
NOW = 5_000

CONTRACT = {
    "new": {"Queued", "Scheduled"},
    "Scheduled": {"InProgress", "Canceled"},
    "Queued": {"InProgress", "Canceled"},
    "InProgress": {"Completed", "Failed", "Canceled", "Scheduled", "Queued"},
    "Failed": {"Queued"},
    "Canceled": {"Queued"},
    "Completed": set[str](),
}
"""'Transitions, and no others'. Source: the wire contract."""

LEGAL: dict[tuple[type[Command], Status], set[Status]] = {
    (Claim, Q): {P},
    (Claim, S): {P},
    (Report, P): {P},  # progress and log lines of the current attempt
    (Succeed, P): {C},
    (Fail, P): {S, F, X},  # a retry, no retry left, after a cancel
    (Stop, P): {X},
    (Release, P): {Q, X},
    (Lapse, P): {Q, F, X},
    (Cancel, Q): {X},
    (Cancel, S): {X},
    (Cancel, P): {P},  # 202, cancelRequested
    (Cancel, X): {X},  # "Already canceled: 200"
    (Retry, F): {Q},
    (Retry, X): {Q},
}
"""(command, state) -> the states that may follow. Source: the contract's transitions and its part on steering."""

FAILURE = Failure(code="HANDLER_ERROR", message="no", type="OSError", retryable=True)
FATAL = replace(FAILURE, retryable=False)

COMMANDS: dict[type[Command], list[Command]] = {
    Claim: [Claim(now_ms=NOW, worker="w", fence=7)],
    Report: [Report(now_ms=NOW), Report(now_ms=NOW, logs=(LogEntry("info", "x"),), progress=Progress(percent=1))],
    Succeed: [Succeed(now_ms=NOW, result=Raw(b"1")), Succeed(now_ms=NOW, result=NULL, location="/x")],
    Fail: [Fail(now_ms=NOW, failure=FAILURE, delay_ms=10), Fail(now_ms=NOW, failure=FATAL)],
    Stop: [Stop(now_ms=NOW)],
    Release: [Release(now_ms=NOW)],
    Lapse: [Lapse(now_ms=NOW)],
    Cancel: [Cancel(now_ms=NOW)],
    Retry: [Retry(now_ms=NOW)],
}


def a_job(status: Status = Q, **fields: Any) -> Job:
    """A record as it may be in ``status``."""
    own: dict[str, Any] = {}
    if status is S:
        own = {"due_ms": 3_000}
    elif status is P:
        own = {"attempt": 1, "started_ms": 1_500, "fence": 3, "worker": "w"}
    elif status in TERMINAL:
        own = {"attempt": 1, "started_ms": 1_500, "completed_ms": 2_000}
    known = {"id": "j", "seq": 4, "name": "N", "max_retries": 2, "created_ms": 1_000, "updated_ms": 2_000}
    return Job(status=status, **{**known, **own, **fields})


def jobs_in(status: Status) -> Iterator[Job]:
    """Every kind of record in ``status`` that a command may treat differently."""
    for retries, lost, asked in product((0, 2), (0, 3), (False, True)):
        if not asked or status is P:
            yield a_job(status, retry_count=retries, lost_leases=lost, cancel_requested=asked)


def run(job: Job, *commands: Command) -> Job:
    for command in commands:
        job = decide(job, command).job
    return job


def test_the_states_are_the_contracts() -> None:
    assert [state.value for state in Status] == [
        "Queued",
        "Scheduled",
        "InProgress",
        "Completed",
        "Failed",
        "Canceled",
    ]
    assert TERMINAL == {C, F, X} == {state for state in Status if state.is_terminal}
    assert {Q, S, P} == LIVE
    assert {Q, S} == WAITING


def test_the_table_moves_jobs_as_the_contract_lists_and_no_other_way() -> None:
    moves: dict[str, set[str]] = {state.value: set() for state in Status}
    for row in TABLE.values():
        for before, afters in row.items():
            moves[before.value] |= {after.value for after in afters if after is not before}
    moves["new"] = {job.status.value for job in (a_job(Q), a_job(S)) if accept(replace(job, seq=0))}
    assert moves == CONTRACT


def test_the_table_has_a_row_for_every_command() -> None:
    assert set(TABLE) == set(COMMANDS) == set(Command.__args__)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_state_and_every_command(kind: type[Command], status: Status) -> None:
    following: set[Status] = set()
    for job, command in product(jobs_in(status), COMMANDS[kind]):
        untouched = replace(job)
        if (kind, status) in LEGAL:
            following.add(decide(job, command).job.status)
        else:
            with pytest.raises(IllegalTransition, match=f"that is {status.value}; that needs "):
                decide(job, command)
        assert job == untouched
    assert following == LEGAL.get((kind, status), set())


def test_a_refusal_says_in_which_states_it_would_be_possible() -> None:
    with pytest.raises(IllegalTransition) as caught:
        decide(a_job(C), Retry(now_ms=NOW))
    assert str(caught.value) == "cannot retry a job that is Completed; that needs Canceled, Failed"


@pytest.mark.parametrize("status", [Q, S])
def test_a_job_is_born_with_one_event_that_holds_the_whole_document(status: Status) -> None:
    job = a_job(status, seq=0, owner="o")
    born, events = accept(job).job, accept(job).events
    assert born == replace(job, seq=1, ready_ms=1_000 if status is Q else 3_000)
    (event,) = events
    assert (event.seq, event.since, event.type, event.status, event.at_ms) == (1, 0, "status", status, 2_000)
    assert (event.job_id, event.name, event.queue, event.owner) == ("j", "N", "default", "o")
    assert event.changes == changes(None, born)


@pytest.mark.parametrize(
    "job",
    [a_job(P), a_job(C), a_job(F), a_job(X), a_job(Q, due_ms=1), a_job(S, due_ms=None)],
    ids=lambda job: job.status,
)
def test_a_job_is_born_waiting_and_with_a_due_time_only_if_scheduled(job: Job) -> None:
    with pytest.raises(IllegalTransition, match="cannot begin as"):
        accept(job)


@pytest.mark.parametrize("status", [Q, S])
def test_claim_gives_the_job_an_owner_and_a_fresh_attempt(status: Status) -> None:
    waiting = a_job(status, attempt=4, progress=Progress(percent=50), error=FAILURE, retry_count=1)
    claimed = decide(waiting, Claim(now_ms=NOW, worker="w2", fence=9)).job
    assert claimed == replace(
        waiting,
        status=P,
        seq=5,
        attempt=5,
        started_ms=NOW,
        begun_ms=NOW,
        updated_ms=NOW,
        due_ms=None,
        fence=9,
        worker="w2",
        progress=None,
    )
    assert claimed.error == FAILURE, "the last attempt's failure stays until a later one succeeds"


def test_report_becomes_one_event_for_each_log_line_and_one_for_progress() -> None:
    logs = (LogEntry("info", "one"), LogEntry("error", "two"))
    progress = Progress(percent=10, message="m", data=Raw(b"[1]"))
    change = decide(a_job(P), Report(now_ms=NOW, logs=logs, progress=progress))
    assert change.job == replace(a_job(P), seq=7, updated_ms=NOW, progress=progress)
    assert [(event.since, event.seq, event.type) for event in change.events] == [
        (4, 5, "log"),
        (5, 6, "log"),
        (6, 7, "progress"),
    ]
    assert [event.log for event in change.events] == [*logs, None]
    assert set(change.events[0].changes) == {"id", "seq", "lastUpdatedAt"}
    assert set(change.events[2].changes) == {"id", "seq", "lastUpdatedAt", "progress"}
    assert bytes(change.events[2].changes["progress"]) == b'{"percent":10,"message":"m","data":[1]}'


def test_an_empty_report_changes_nothing() -> None:
    assert decide(a_job(P), Report(now_ms=NOW)) == Change(a_job(P))


def test_success_sets_result_and_location_and_clears_the_error_of_earlier_attempts() -> None:
    done = decide(a_job(P, error=FAILURE), Succeed(now_ms=NOW, result=Raw(b'"x"'), location="/x")).job
    assert done == replace(
        a_job(P),
        status=C,
        seq=5,
        result=Raw(b'"x"'),
        location="/x",
        error=None,
        fence=0,
        worker=None,
        updated_ms=NOW,
        completed_ms=NOW,
    )


# A cancel of a running job is a request.


def test_a_cancel_of_a_running_job_only_asks_and_asking_twice_is_asking_once() -> None:
    asked = decide(a_job(P), Cancel(now_ms=NOW)).job
    assert asked == replace(a_job(P), seq=5, updated_ms=NOW, cancel_requested=True)
    assert decide(asked, Cancel(now_ms=NOW + 1)) == Change(asked)


@pytest.mark.parametrize("status", [Q, S])
def test_a_cancel_of_a_waiting_job_ends_it_at_once(status: Status) -> None:
    canceled = decide(a_job(status), Cancel(now_ms=NOW)).job
    assert canceled == replace(a_job(status), status=X, seq=5, updated_ms=NOW, completed_ms=NOW, due_ms=None)


def test_a_cancel_of_a_canceled_job_changes_nothing() -> None:
    assert decide(a_job(X), Cancel(now_ms=NOW)) == Change(a_job(X))


@pytest.mark.parametrize(
    "ending",
    [Stop(now_ms=NOW), Release(now_ms=NOW), Lapse(now_ms=NOW), Fail(now_ms=NOW, failure=FAILURE, delay_ms=1)],
    ids=lambda command: type(command).__name__,
)
def test_any_ending_but_a_value_is_canceled_after_a_cancel(ending: Command) -> None:
    asked = a_job(P, cancel_requested=True, max_retries=9)
    ended = decide(asked, ending).job
    assert (ended.status, ended.cancel_requested, ended.completed_ms) == (X, False, NOW)
    assert (ended.fence, ended.worker, ended.due_ms, ended.retry_count) == (0, None, None, 0)
    assert ended.error == (FAILURE if isinstance(ending, Fail) else None)


def test_a_cancel_wins_over_a_lost_lease_too_many() -> None:
    ended = decide(a_job(P, cancel_requested=True, lost_leases=3), Lapse(now_ms=NOW)).job
    assert (ended.status, ended.error) == (X, None)


def test_a_value_returned_before_the_cancel_took_hold_stands() -> None:
    ended = decide(a_job(P, cancel_requested=True), Succeed(now_ms=NOW, result=Raw(b"1"))).job
    assert (ended.status, bytes(ended.result), ended.cancel_requested) == (C, b"1", False)


# A failure goes back to Scheduled while it is retryable and retries are left.


def test_a_failure_is_tried_again_as_often_as_allowed() -> None:
    job = a_job(P)
    for used in (1, 2):
        job = decide(job, Fail(now_ms=NOW, failure=FAILURE, delay_ms=70)).job
        assert (job.status, job.retry_count, job.due_ms, job.error) == (S, used, NOW + 70, FAILURE)
        assert (job.fence, job.worker, job.completed_ms) == (0, None, None)
        job = decide(job, Claim(now_ms=NOW, worker="w", fence=used)).job
    job = decide(job, Fail(now_ms=NOW, failure=FAILURE, delay_ms=70)).job
    assert (job.status, job.retry_count, job.due_ms, job.error, job.completed_ms) == (F, 2, None, FAILURE, NOW)


@pytest.mark.parametrize(("failure", "max_retries"), [(FATAL, 5), (FAILURE, 0)])
def test_a_failure_is_final_if_it_may_not_be_retried_or_no_retry_is_allowed(failure: Failure, max_retries: int) -> None:
    ended = decide(a_job(P, max_retries=max_retries), Fail(now_ms=NOW, failure=failure, delay_ms=1)).job
    assert (ended.status, ended.retry_count, ended.error) == (F, 0, failure)


# A job whose holders die ends with WORKER_LOST.


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_job_survives_as_many_lost_leases_as_allowed(allowed: int) -> None:
    job = a_job(P, max_lost_leases=allowed)
    for lost in range(1, allowed + 1):
        job = decide(job, Lapse(now_ms=NOW)).job
        assert (job.status, job.lost_leases, job.retry_count, job.error) == (Q, lost, 0, None)
        assert (job.fence, job.worker) == (0, None)
        job = decide(job, Claim(now_ms=NOW, worker="w", fence=lost)).job
    job = decide(job, Lapse(now_ms=NOW)).job
    assert (job.status, job.lost_leases, job.error) == (F, allowed + 1, WORKER_LOST)
    assert WORKER_LOST.code == "WORKER_LOST"
    assert not WORKER_LOST.retryable


def test_a_release_counts_neither_as_a_retry_nor_as_a_lost_lease() -> None:
    held = a_job(P, max_lost_leases=0, max_retries=0)
    released = replace(held, status=Q, seq=5, updated_ms=NOW, ready_ms=NOW, fence=0, worker=None)
    assert decide(held, Release(now_ms=NOW)).job == released


# Explicit retry.


@pytest.mark.parametrize("status", [F, X])
def test_an_explicit_retry_clears_what_the_contract_says_and_nothing_else(status: Status) -> None:
    ended = a_job(
        status,
        attempt=5,
        begun_ms=1_400,
        retry_count=2,
        lost_leases=4,
        error=FAILURE,
        progress=Progress(percent=3),
        priority=9,
        key="k",
        fingerprint="f",
        owner="o",
        timeout_seconds=4,
    )
    again = decide(ended, Retry(now_ms=NOW)).job
    assert again == replace(
        ended,
        status=Q,
        seq=5,
        updated_ms=NOW,
        ready_ms=NOW,
        begun_ms=None,
        retry_count=0,
        lost_leases=0,
        error=None,
        progress=None,
        completed_ms=None,
    )
    assert (again.attempt, again.result) == (5, NULL)


# Time.


def test_ready_is_since_it_may_be_claimed_and_begun_the_claim_of_the_first_attempt() -> None:
    def times(job: Job) -> tuple[int | None, int | None]:
        return job.ready_ms, job.begun_ms

    def claim(now_ms: int) -> Claim:
        return Claim(now_ms=now_ms, worker="w", fence=1)

    job = accept(a_job(S, seq=0)).job
    assert times(job) == (3_000, None)
    assert times(job := run(job, claim(3_100))) == (3_000, 3_100)
    assert times(job := run(job, Fail(now_ms=4_000, failure=FAILURE, delay_ms=50))) == (4_050, 3_100)
    assert times(job := run(job, claim(5_000))) == (4_050, 3_100)
    assert times(job := run(job, Lapse(now_ms=6_000))) == (6_000, 3_100)
    assert times(job := run(job, claim(7_000), Fail(now_ms=7_100, failure=FATAL))) == (6_000, 3_100)
    assert times(job := run(job, Retry(now_ms=8_000))) == (8_000, None)
    assert times(run(job, claim(9_000))) == (8_000, 9_000)


def test_a_clock_that_was_set_back_does_not_make_history_run_backwards() -> None:
    early = 1
    claimed = decide(a_job(Q), Claim(now_ms=early, worker="w", fence=1)).job
    assert (claimed.updated_ms, claimed.started_ms) == (2_000, 2_000)
    reported = decide(claimed, Report(now_ms=early, logs=(LogEntry("info", "x"),), progress=Progress()))
    assert [event.at_ms for event in reported.events] == [2_000, 2_000]
    ended = run(reported.job, Stop(now_ms=early))
    assert (ended.updated_ms, ended.completed_ms) == (2_000, 2_000)
    failed = run(claimed, Fail(now_ms=early, failure=FAILURE, delay_ms=5))
    assert failed.due_ms == early + 5, "when it may run goes by the clock that will be asked"


# The diagram.


def test_the_diagram_draws_the_contract() -> None:
    first, *lines = diagram().splitlines()
    assert first == "stateDiagram-v2"
    drawn = {tuple(line.strip().split(": ")) for line in lines}
    expected = {
        (f"{before.value} --> {after.value}", kind.__name__.lower())
        for (kind, before) in LEGAL
        for after in LEGAL[kind, before]
    }
    expected |= {("[*] --> Queued", "submit"), ("[*] --> Scheduled", "submit")}
    ends = {(f"{state} --> [*]",) for state in ("Completed", "Failed", "Canceled")}
    assert drawn == expected | ends
    assert len(lines) == len(drawn)
