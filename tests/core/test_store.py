"""The protocol's own text: its promises are numbered, and its call discipline names every verb."""

import inspect
import re

from callboard.runtime.core import store
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import News, Store, Write


def test_the_promises_are_numbered_without_a_hole() -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", store.__doc__ or "", re.MULTILINE)]
    assert numbers == list(range(1, 14))


def test_every_verb_is_in_the_call_discipline() -> None:
    discipline = (store.__doc__ or "").rpartition("\n\n")[2]
    verbs = {name for name, _ in inspect.getmembers(Store, inspect.iscoroutinefunction)}
    assert set(re.findall(r"``(\w+)``", discipline)) == verbs - {"open", "aclose"}
    assert all(inspect.getdoc(getattr(Store, verb)) for verb in verbs)


def test_a_write_is_unbounded_and_news_are_complete_unless_said_otherwise() -> None:
    write = Write(job=Job(id="j", name="N", status=Status.QUEUED, created_ms=0, updated_ms=0), events=())
    assert (write.expected, write.request, write.max_queue_size) == (None, None, None)
    assert News(cursor="1") == News(cursor="1", events=(), complete=True, holder_died=False, queues_changed=False)
