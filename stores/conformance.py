"""The public suite that holds a driver to the store protocol; needs no test framework.

Each check is named after the promise of ``callboard.runtime.core.store`` that it holds the driver to. A driver's own test file is::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_conforms(check):
        await check(lambda name, clock: MyStore(prefix=name, clock=clock))

Two stores made with one name must see the same data, a fresh name must be empty.
"""

from typing import Final

from callboard.stores import (
    conformance_claims,
    conformance_history,
    conformance_pause,
    conformance_reads,
    conformance_writes,
)
from callboard.stores.conformance_bench import Check, MakeStore

__all__ = ["CHECKS", "Check", "MakeStore", "check_store"]

CHECKS: Final[tuple[Check, ...]] = (
    *conformance_writes.CHECKS,
    *conformance_claims.CHECKS,
    *conformance_reads.CHECKS,
    *conformance_history.CHECKS,
    *conformance_pause.CHECKS,
)


async def check_store(make_store: MakeStore, *, clock_is_injected: bool = True) -> None:
    """Run every check, one after another. Raises AssertionError at the first promise that is not kept.

    ``make_store(name, clock)`` makes a store without opening it. ``clock_is_injected=False`` says that the driver's time comes from
    a server, so that the checks wait for short leases to end.
    """
    for check in CHECKS:
        await check(make_store, clock_is_injected=clock_is_injected)
