"""What runtime and worker process say to each other: small records in frames of bounded length. No I/O here.

One connection is one attempt: the child says ``Hello`` with the attempt's token, the runtime gives it its ``Order``, the child reports
while it runs (``Line``, ``Step``) and says last how it ended (``Gave``, ``NoJson``, ``TooLarge``, ``Raised``). Another connection is the
child's lifeline: after ``Hello`` and one byte of welcome nobody says anything on it, it only ends.
"""

import struct
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from callboard.runtime.faults import Fault

__all__ = [
    "MAX_REPORT_BYTES",
    "WELCOME",
    "Ending",
    "Frames",
    "Gave",
    "Hello",
    "Line",
    "NoJson",
    "Order",
    "Raised",
    "Said",
    "Step",
    "TooLarge",
    "WireError",
    "frame",
    "max_ending_bytes",
    "read_hello",
    "read_order",
    "read_said",
]

MAX_REPORT_BYTES: Final = 512 * 1024
"""A report is bounded by the checks of ``context``: 10,000 characters of text and 64 kB of data, however they are escaped."""
_FAULT_BYTES: Final = 4 * 1024 * 1024
"""More than any ``Fault`` takes; see its bounds."""
WELCOME: Final = b"+"
"""The runtime's answer on a lifeline."""
_LENGTH: Final = struct.Struct("!I")


class WireError(Exception):
    """What came is none of the records, or longer than it may be."""


class Hello(Struct, frozen=True):
    """The child's first word on a connection: which attempt it is (or the lifeline's token), and its process id."""

    token: str
    pid: int


class Order(Struct, frozen=True, kw_only=True):
    """One attempt: which function, with which job."""

    name: str
    module: str
    function: str
    file: str | None
    job: Raw
    request: Raw
    max_result_bytes: int
    report_seconds: float
    """The child sends what its handler reports at most so often."""


class Line(Struct, frozen=True, tag="line"):
    """A log line."""

    level: str
    message: str


class Step(Struct, frozen=True, tag="step"):
    """The newest progress; ``data`` is JSON text."""

    percent: float | None
    message: str | None
    data: Raw


class Gave(Struct, frozen=True, tag="gave"):
    """The handler returned this value (JSON text)."""

    result: Raw


class NoJson(Struct, frozen=True, tag="no-json"):
    """The handler returned a value that has no JSON form."""

    fault: Fault


class TooLarge(Struct, frozen=True, tag="too-large"):
    """The handler returned a value of so many bytes, more than are kept."""

    size: int


class Raised(Struct, frozen=True, tag="raised"):
    """The handler raised."""

    fault: Fault


Ending = Gave | NoJson | TooLarge | Raised
Said = Line | Step | Ending

_encoder: Final = msgspec.json.Encoder()
_said: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Said)


def max_ending_bytes(max_result_bytes: int) -> int:
    """The longest frame that a child may send."""
    return max_result_bytes + _FAULT_BYTES


def frame(message: Struct) -> bytes:
    """The message as it is sent."""
    data = _encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts a stream of bytes into frames of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """More has come."""
        self._bytes += data

    def take(self) -> bytes | None:
        """The next whole frame; None if there is none yet. Raises WireError for one that is too long."""
        if len(self._bytes) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._bytes)
        if size > self._most:
            raise WireError(f"a message of {size} bytes, more than {self._most}")
        end = _LENGTH.size + size
        if len(self._bytes) < end:
            return None
        found = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return found


def read_hello(data: bytes) -> Hello:
    """Raises WireError."""
    hello: Hello = _read(msgspec.json.Decoder(Hello), data)
    return hello


def read_order(data: bytes) -> Order:
    """Raises WireError."""
    order: Order = _read(msgspec.json.Decoder(Order), data)
    return order


def read_said(data: bytes) -> Said:
    """What the child says while it runs and at its end. Raises WireError."""
    said: Said = _read(_said, data)
    if isinstance(said, Line | Step) and len(data) > MAX_REPORT_BYTES:
        raise WireError(f"a report of {len(data)} bytes, more than {MAX_REPORT_BYTES}")
    return said


def _read(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(str(error)) from error
