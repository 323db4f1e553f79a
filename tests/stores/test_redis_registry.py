"""Ids and keys over several spaces: the protocol between registry and spaces, with every crash between two steps and every race.

A *crash* is a caller that raises in the stead of a call, or after it was made: what the process would have done next is never done. A
process that *stands still* is one whose next call is made by hand, later.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
from msgspec.structs import replace
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.redis_servers import RedisServer

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Committed, Conflict, Delete, Duplicate, Full, JobFilter, Write
from callboard.stores import redis_births, redis_scripts
from callboard.stores.conformance_bench import after, birth, cancel, ids, job, kinds
from callboard.stores.redis_births import DOUBT_MS
from callboard.stores.redis_registry import Asked, Entry, Tiding, gone, over, resolved
from callboard.stores.redis_scripts import Script
from callboard.stores.redis_space import Identity
from callboard.stores.redis_spread import Spread

ME = Identity("w", 100, 100)
SPACES = 2
HERE, THERE = "q", "r"
"""Two queues in two spaces."""


class Crash(Exception):
    """The process is gone."""


class Hands:
    """A caller on one plain server, on which the slots of all spaces lie: what the protocol is about is the order of calls.

    ``before`` and ``after`` are called with the name of each script; what they raise is a crash, or a lost connection.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.before: Callable[[str], None] = lambda name: None
        self.after: Callable[[str], None] = lambda name: None
        self.ran: list[str] = []

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        self.before(script.name)
        answer = self.client.execute_command("EVAL", script.text, len(keys), *keys, *args)
        self.ran.append(script.name)
        self.after(script.name)
        return answer

    def run_all(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[str | bytes | int]]]) -> list[Any]:
        return [self.run(*call) for call in calls]


class Process:
    """One process of the store: what it remembers, and its connection. ``now_ms`` is the servers' clock."""

    def __init__(self, server: RedisServer, clock: Callable[[], int]) -> None:
        self.hands = Hands(server.client(protocol=3))
        self.spread = Spread("t", SPACES, channel="news", clock=clock)
        self.spread.open(self.hands)
        self.hands.ran.clear()

    def commit(self, *batch: Write | Delete) -> list[Any]:
        return list(self.spread.commit(self.hands, ME, batch))

    def get(self, number: int) -> Job | None:
        return self.spread.get(self.hands, [birth(number).job.id])[0]

    def everything(self) -> list[int]:
        return ids(self.spread.page(self.hands, JobFilter(), below=2**60, limit=100))

    def keep_house(self) -> None:
        self.spread.lapse(self.hands, ME, limit=1)

    def stroll(self) -> None:
        self.spread.births.stroll(self.hands)


class World:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.now_ms = 1_700_000_000_000

    def process(self) -> Process:
        return Process(self.server, lambda: self.now_ms)

    def names(self) -> dict[str, str]:
        return dict(self.server.run("HGETALL", "{t:ids}:names"))

    def open_names(self) -> list[str]:
        return list(self.server.run("ZRANGE", "{t:ids}:open", 0, -1))


@pytest.fixture
def world(redis_server: RedisServer) -> Iterator[World]:
    world = World(redis_server)
    assert world.process().spread.space_of(HERE) != world.process().spread.space_of(THERE)
    yield world


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_births, "WAIT_SECONDS", 0.02)


def dying(name: str, times: int = 1) -> Callable[[str], None]:
    """Raises at the n-th script of that name."""
    left = times

    def die(ran: str) -> None:
        nonlocal left
        if ran == name:
            left -= 1
            if left == 0:
                raise Crash

    return die


def job_of(outcome: Any) -> Job:
    assert isinstance(outcome, Committed), outcome
    return outcome.job


def settle(world: World, process: Process) -> None:
    """All that processes which have died left behind is old by now, and someone has looked."""
    world.now_ms += DOUBT_MS + 1
    process.keep_house()


def agree(world: World, process: Process) -> None:
    """What the registry says is what is there: after everything has settled, an entry for each name of each job, and no other."""
    settle(world, process)
    process.stroll()
    assert world.open_names() == []
    jobs = process.spread.page(process.hands, JobFilter(), below=2**60, limit=100)
    wanted = {
        name: (process.spread.space_of(job.queue), str(job.serial))
        for job in jobs
        for name in (f"i{job.id}", *([] if job.key is None else [f"k{job.key}"]))
    }
    found = {name: (int(entry.split()[0]), entry.split()[3]) for name, entry in world.names().items()}
    assert found == wanted
    assert [job for job in jobs if process.spread.get(process.hands, [job.id]) != [job]] == []
    assert len({job.id for job in jobs}) == len(jobs)
    keys = [job.key for job in jobs if job.key is not None]
    assert len(set(keys)) == len(keys)


def test_an_id_is_one_job_whatever_the_queue(world: World) -> None:
    here, there = world.process(), world.process()
    first = job_of(here.commit(birth(1, queue=HERE))[0])
    assert there.commit(birth(1, queue=THERE)) == [Duplicate(first)]
    assert here.commit(birth(1, queue=THERE), birth(1, queue=HERE)) == [Duplicate(first), Duplicate(first)]
    assert there.everything() == [1]
    agree(world, there)


def test_a_key_is_one_job_whatever_the_queue(world: World) -> None:
    here, there = world.process(), world.process()
    first = job_of(here.commit(birth(1, queue=HERE, key="k"))[0])
    assert there.commit(birth(2, queue=THERE, key="k")) == [Duplicate(first)]
    # The refused job has left nothing: its id is free.
    assert kinds(there.commit(birth(2, queue=THERE))) == ["Committed"]
    ended = job_of(there.commit(after(first, cancel()))[0])
    there.commit(Delete(expected=ended))
    assert kinds(here.commit(birth(3, queue=THERE, key="k"))) == ["Committed"]
    agree(world, there)


def test_the_job_with_the_id_comes_before_the_one_with_the_key(world: World) -> None:
    process = world.process()
    first, other = (job_of(one) for one in process.commit(birth(1, queue=HERE), birth(2, queue=THERE, key="k")))
    assert process.commit(birth(1, queue=HERE, key="k"), birth(2, queue=HERE, key="l")) == [
        Duplicate(first),
        Duplicate(other),
    ]
    agree(world, process)


def test_in_one_batch_too_and_in_its_order(world: World) -> None:
    process = world.process()
    first = job_of(process.commit(birth(1, queue=HERE, key="k"))[0])
    outcomes = process.commit(
        birth(1, queue=THERE),
        Delete(expected=first),
        birth(1, queue=THERE, key="k"),
        birth(2, queue=HERE, key="k"),
        birth(3, queue=HERE, key="l", max_queue_size=0),
        birth(3, queue=THERE, key="l"),
    )
    assert kinds(outcomes) == ["Duplicate", "Committed", "Committed", "Duplicate", "Full", "Committed"]
    assert (outcomes[0], outcomes[3], outcomes[4]) == (Duplicate(first), Duplicate(outcomes[2].job), Full(0))
    assert process.everything() == [3, 1]
    agree(world, process)


def test_a_write_finds_a_job_that_was_born_again_in_another_queue(world: World) -> None:
    process = world.process()
    old = job_of(process.commit(birth(1, queue=HERE))[0])
    _, new = process.commit(Delete(expected=old), birth(1, queue=THERE))
    assert process.commit(after(old, cancel()), Delete(expected=old)) == [Conflict(new.job), Conflict(new.job)]
    again = replace(after(old, cancel()), again=lambda stored: after(stored, cancel()))
    assert job_of(process.commit(again)[0]) == after(new.job, cancel()).job
    assert process.commit(after(birth(9).job, cancel())) == [Conflict(None)]
    agree(world, process)


def test_what_a_process_remembers_of_an_id_is_not_believed(world: World) -> None:
    here, there = world.process(), world.process()
    old = job_of(here.commit(birth(1, queue=HERE))[0])
    assert there.get(1) == old
    _, new = here.commit(Delete(expected=old), birth(1, queue=THERE))
    assert there.get(1) == new.job
    assert [event.queue for event in there.spread.events(there.hands, old.id, after=0, limit=9)] == [THERE]
    here.commit(Delete(expected=new.job))
    assert there.get(1) is None
    assert there.spread.events(there.hands, old.id, after=0, limit=9) == []


def test_serials_grow_through_all_queues(world: World) -> None:
    process = world.process()
    batch = [birth(number, queue=(HERE, THERE)[number % 2]) for number in range(10)]
    serials = [job_of(outcome).serial for outcome in process.commit(*batch)]
    assert serials == sorted(set(serials))


def test_two_lookups_of_a_batch_in_both_spaces_are_one_round_trip(world: World) -> None:
    process = world.process()
    process.commit(*(birth(number, queue=(HERE, THERE)[number % 2]) for number in range(4)))
    assert process.hands.ran == ["register_births", "commit_births", "commit_births"]


# A process dies between two steps. STEPS names where, of the birth of job 1 with key k.

STEPS: dict[str, Callable[[Hands], None]] = {
    "before it asks": lambda hands: setattr(hands, "before", dying("register_births")),
    "asked, has not brought it in": lambda hands: setattr(hands, "before", dying("commit_births")),
    "brought it in, has not told": lambda hands: setattr(hands, "after", dying("commit_births")),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("queue", [HERE, THERE])
def test_it_dies_while_it_brings_in_a_job_and_another_brings_it_in_again(world: World, step: str, queue: str) -> None:
    dead, other = world.process(), world.process()
    STEPS[step](dead.hands)
    with pytest.raises(Crash):
        dead.commit(birth(1, queue=HERE, key="k"))
    outcome = other.commit(birth(1, queue=queue, key="k"))[0]
    assert isinstance(outcome, Duplicate if step.startswith("brought") else Committed)
    assert other.everything() == [1]
    agree(world, other)


@pytest.mark.parametrize("step", STEPS)
def test_it_dies_while_it_brings_in_a_job_and_nobody_comes_again(world: World, step: str) -> None:
    dead, other = world.process(), world.process()
    STEPS[step](dead.hands)
    with pytest.raises(Crash):
        dead.commit(birth(1, queue=HERE, key="k"))
    assert other.everything() == ([1] if step.startswith("brought") else [])
    agree(world, other)


@pytest.mark.parametrize("step", STEPS)
def test_the_key_of_a_dead_try_is_not_lost(world: World, step: str) -> None:
    dead, other = world.process(), world.process()
    STEPS[step](dead.hands)
    with pytest.raises(Crash):
        dead.commit(birth(1, queue=HERE, key="k"))
    outcome = other.commit(birth(2, queue=THERE, key="k"))[0]
    assert isinstance(outcome, Duplicate if step.startswith("brought") else Committed)
    agree(world, other)


def test_it_dies_between_a_removal_and_what_the_registry_hears_of_it(world: World) -> None:
    dead, other = world.process(), world.process()
    (first, second, third) = [
        job_of(one) for one in dead.commit(*(birth(n, queue=HERE, key=f"k{n}") for n in (1, 2, 3)))
    ]
    dead.keep_house()
    ended = job_of(dead.commit(after(second, cancel()))[0])
    dead.hands.before = dying("register")
    with pytest.raises(Crash):
        dead.commit(Delete(expected=first))
    dead.hands.before = dying("register")
    with pytest.raises(Crash):
        dead.spread.prune(dead.hands, ended_before_ms=(ended.completed_ms or 0) + 1, limit=10)
    # Of one the id is wanted again, of the other the key; what nobody wants is swept up.
    assert kinds(other.commit(birth(1, queue=THERE))) == ["Committed"]
    assert other.everything() == [1, 3]
    assert other.get(2) is None
    agree(world, other)
    assert third in [other.get(3)]


def test_it_dies_while_it_takes_over_from_one_that_died(world: World) -> None:
    for step in ("bar", "find", "register_births"):
        world.server.run("FLUSHALL")
        dead, next_dead, last = world.process(), world.process(), world.process()
        dead.hands.before = dying("commit_births")
        with pytest.raises(Crash):
            dead.commit(birth(1, queue=HERE, key="k"))
        for moment in ("before", "after"):
            times = 2 if step != "bar" else 1
            setattr(next_dead.hands, moment, dying(step, times))
            with pytest.raises(Crash):
                next_dead.commit(birth(1, queue=THERE, key="k"))
        assert kinds(last.commit(birth(1, queue=THERE))) in (["Committed"], ["Duplicate"])
        assert last.everything() == [1]
        agree(world, last)


def held_back(process: Process, *batch: Write) -> Callable[[], list[Any]]:
    """The process asks for its names and then stands still; what is returned lets it go on."""
    steps: list[str] = []
    taken: list[tuple[Script, Sequence[str], Sequence[Any]]] = []
    real = process.hands.run

    def run(script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if script.name == "commit_births" and not steps:
            steps.append("held")
            taken.append((script, keys, args))
            raise Crash
        return real(script, keys, args)

    process.hands.run = run  # type: ignore[method-assign]
    with pytest.raises(Crash):
        process.commit(*batch)
    process.hands.run = real  # type: ignore[method-assign]
    return lambda: list(real(*taken[0]))


@pytest.mark.parametrize("queue", [HERE, THERE])
def test_one_that_stood_still_cannot_bring_in_what_another_has_taken_over(world: World, queue: str) -> None:
    slow, other = world.process(), world.process()
    go_on = held_back(slow, birth(1, queue=HERE, key="k"))
    first = job_of(other.commit(birth(1, queue=queue, key="k"))[0])
    (answer,) = go_on()
    # In the same space the space itself tells; in another its gate was shut.
    assert answer[0] == (b"D" if queue == HERE else b"G")
    assert other.everything() == [1]
    assert slow.get(1) == first
    agree(world, other)


def test_one_that_stood_still_cannot_bring_in_what_was_settled_meanwhile(world: World) -> None:
    slow, other = world.process(), world.process()
    go_on = held_back(slow, birth(1, queue=HERE, key="k"))
    settle(world, other)
    assert world.names() == {}
    assert go_on()[0][0] == b"G"
    assert other.everything() == []
    # Awake again, it comes through the gate that is open by now.
    assert kinds(slow.commit(birth(1, queue=HERE, key="k"), birth(2, queue=HERE))) == ["Committed", "Committed"]
    agree(world, slow)


def test_one_that_stood_still_comes_back_after_its_name_came_and_went(world: World) -> None:
    """What it would bring in must not be forgotten by a registry that has seen another of its name come and go."""
    slow, other = world.process(), world.process()
    go_on = held_back(slow, birth(1, queue=HERE, key="k"))
    first = job_of(other.commit(birth(1, queue=HERE, key="k"))[0])
    other.commit(Delete(expected=first))
    other.keep_house()
    assert go_on()[0][0] == b"C"
    assert slow.get(1) is not None
    assert isinstance(other.commit(birth(1, queue=THERE))[0], Duplicate)
    agree(world, other)


def test_a_new_job_that_is_barred_takes_all_behind_it_through_the_next_gate(world: World) -> None:
    process, other = world.process(), world.process()
    first = job_of(process.commit(birth(1, queue=HERE))[0])
    other.spread.spaces[other.spread.space_of(HERE)].bar(other.hands, 0)
    outcomes = process.commit(
        after(first, cancel()),
        birth(2, queue=HERE, key="k"),
        birth(3, queue=THERE),
        Delete(expected=first),
        birth(2, queue=HERE),
    )
    assert kinds(outcomes) == ["Committed", "Committed", "Committed", "Conflict", "Duplicate"]
    assert process.everything() == [2, 3, 1] or process.everything() == [3, 2, 1]
    agree(world, process)


def test_two_that_want_one_id_in_two_queues_do_not_lock_each_other_out(world: World) -> None:
    """Each finds the other's try half-way and shuts its gate; whoever is last brings it in, and there is one."""
    here, there = world.process(), world.process()
    go_on_here = held_back(here, birth(1, queue=HERE))
    go_on_there = held_back(there, birth(2, queue=HERE))
    assert kinds(there.commit(birth(1, queue=THERE))) == ["Committed"]
    assert kinds(here.commit(birth(2, queue=THERE))) == ["Committed"]
    assert [go_on_here()[0][0], go_on_there()[0][0]] == [b"G", b"G"]
    assert sorted(here.everything()) == [1, 2]
    agree(world, here)


def lose_once(process: Process, when: Literal["before", "after"]) -> None:
    """The connection breaks at the next call of the registry, before it is made or after."""

    def lose(name: str) -> None:
        if name == "register":
            setattr(process.hands, when, lambda name: None)
            raise RedisConnectionError("lost")

    setattr(process.hands, when, lose)


def test_a_lost_answer_of_the_registry_is_repeated_where_that_is_harmless(world: World) -> None:
    process = world.process()
    first = job_of(process.commit(birth(1, queue=HERE, key="k"))[0])

    lose_once(process, "after")
    assert kinds(process.commit(Delete(expected=first))) == ["Committed"]
    process.keep_house()
    agree(world, process)


def test_a_removal_that_never_reached_the_registry_is_told_again(world: World) -> None:
    process = world.process()
    first = job_of(process.commit(birth(1, queue=HERE, key="k"))[0])

    lose_once(process, "before")
    assert kinds(process.commit(Delete(expected=first))) == ["Committed"]
    assert world.names() != {}
    process.keep_house()
    # Not the first, whose try was never told to be over; but that it is gone is known.
    assert {entry.split()[4] for entry in world.names().values()} == {str(first.serial)}
    agree(world, process)


def test_that_a_try_is_over_is_never_told_twice(world: World) -> None:
    process, slow = world.process(), world.process()
    first = job_of(process.commit(birth(1, queue=HERE))[0])
    go_on = held_back(slow, birth(1, queue=HERE))

    lose_once(process, "after")
    process.keep_house()
    process.keep_house()
    process.commit(Delete(expected=first))
    assert go_on()[0][0] == b"C"
    assert process.get(1) is not None
    agree(world, process)


def entry_after(world: World, *tidings: Tiding, asked: Sequence[int] = (0,)) -> str | None:
    """The entry of job 1 after its name was asked for through those gates of space 0, and that was told."""
    process = world.process()
    registry, name = process.spread.registry, f"i{job(1).id}"
    for gate in asked:
        assert isinstance(registry.ask(process.hands, [], [(0, gate, job(1))])[0], Asked)
    registry.tell(process.hands, tidings)
    return world.names().get(name)


NAME = f"i{job(1).id}"


def test_what_is_told_is_compared(world: World) -> None:
    cases: list[tuple[str | None, tuple[Tiding, ...], tuple[int, ...]]] = [
        ("0 0 0 7 -", (over(NAME, 0, 0, 7),), (0,)),
        (None, (over(NAME, 0, 0, None),), (0,)),
        # A removal is of one serial: it does not hit a later job.
        ("0 0 0 7 -", (over(NAME, 0, 0, 7), gone(NAME, 0, 5)), (0,)),
        (None, (over(NAME, 0, 0, 7), gone(NAME, 0, 7)), (0,)),
        ("0 0 0 7 -", (over(NAME, 0, 0, 7), gone(NAME, 1, 7)), (0,)),
        # A removal that is heard of before the try that saw the job.
        (None, (gone(NAME, 0, 7), over(NAME, 0, 0, 7)), (0,)),
        ("0 0 1 - 7", (gone(NAME, 0, 7), over(NAME, 0, 0, 7)), (0, 0)),
        # Tries of a gate that is shut count no more, and what is told of them is old.
        ("0 1 0 9 -", (over(NAME, 0, 1, 9),), (0, 1)),
        ("0 1 1 - -", (over(NAME, 0, 0, 9),), (0, 1)),
        ("0 0 2 - -", (over(NAME, 1, 0, 9),), (0, 0)),
        # Only the entry that was seen is settled.
        ("0 0 2 - -", (resolved(NAME, Entry(b"0 0 1 - -", 0, 0, 1, ()), 9, 1),), (0, 0)),
        ("0 1 0 9 -", (resolved(NAME, Entry(b"0 0 1 - -", 0, 0, 1, ()), 9, 1),), (0,)),
        (None, (resolved(NAME, Entry(b"0 0 1 - -", 0, 0, 1, ()), None, 1),), (0,)),
    ]
    for wanted, tidings, asked in cases:
        world.server.run("FLUSHALL")
        assert (tidings, entry_after(world, *tidings, asked=asked)) == (tidings, wanted)


def test_a_busy_name_is_given_up_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_births, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(redis_births, "WAIT_SECONDS", 10.0)
    slow, other = world.process(), world.process()
    held_back(slow, birth(1, queue=HERE))
    with pytest.raises(StoreUnavailable, match="busy"):
        other.commit(birth(1, queue=THERE))
    assert kinds(slow.commit(birth(1, queue=HERE))) == ["Committed"]


def test_another_number_of_spaces_is_refused(world: World) -> None:
    hands = world.process().hands
    with pytest.raises(StoreRefused, match=r"spread over 2 spaces, not 3.*\?spaces=2"):
        Spread("t", 3, channel="news", clock=None).open(hands)


def test_nothing_is_left_when_everything_is_gone(world: World) -> None:
    process = world.process()
    jobs = [
        job_of(one)
        for one in process.commit(*(birth(n, queue=(HERE, THERE)[n % 2], key=f"k{n}", owner="anna") for n in range(40)))
    ]
    for one in jobs[:20]:
        process.commit(Delete(expected=one))
    process.commit(*(after(one, cancel()) for one in jobs[20:]))
    assert process.spread.prune(process.hands, ended_before_ms=2**50, limit=100) == 20
    agree(world, process)
    kept = {key for key in world.server.run("KEYS", "*") if not key.endswith((":meta", ":notes"))}
    assert kept == set()


def test_every_operation_of_the_registry_is_in_its_script() -> None:
    for operation in ("T", "R", "V", "B"):
        assert f"--   {operation} " in redis_scripts.REGISTER.text
