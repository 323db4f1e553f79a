"""Job ids: UUID version 7, growing within a process. The clock and the randomness are passed in."""

import random
import re
import uuid
from collections.abc import Callable

from callboard.runtime.core.errors import InvalidRequest, JobNotFound

__all__ = ["IdFactory", "canonical", "chosen_id"]

_RANDOM_BITS = 74
_FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class IdFactory:
    """Makes ids that sort in the order in which they were made. Source: RFC 9562, section 5.7 and 6.2 (method 2)."""

    def __init__(self, now_ms: Callable[[], int], source: random.Random) -> None:
        self._now_ms = now_ms
        self._source = source
        self._last_ms = 0
        self._tail = 0

    def new(self) -> str:
        """A fresh id in canonical form."""
        now_ms = self._now_ms()
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # The top bit stays free, so that steps within one millisecond cannot overflow in practice.
            self._tail = self._source.getrandbits(_RANDOM_BITS - 1)
        else:
            self._tail += 1 + self._source.getrandbits(32)
            if self._tail >> _RANDOM_BITS:
                self._last_ms += 1
                self._tail = self._source.getrandbits(_RANDOM_BITS - 1)
        high, low = self._tail >> 62, self._tail & (1 << 62) - 1
        return str(uuid.UUID(int=self._last_ms << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))


def canonical(job_id: str) -> str:
    """The id as it is stored. Raises JobNotFound if it is no UUID: there can be no such job."""
    if _FORM.fullmatch(job_id) is None:
        raise JobNotFound(f"there is no job {job_id[:36]!r}")
    return job_id.lower()


def chosen_id(text: str) -> str:
    """The UUID that a client chose, in canonical form. Raises InvalidRequest if it is none."""
    try:
        return canonical(text)
    except JobNotFound:
        raise InvalidRequest("the job id must be a UUID such as 018f3c1e-5b7a-7cc3-98c4-dc0c0c07398f") from None
