"""A stored request that this version of the app cannot read any more: told for the log without showing what is in it."""

import re
from typing import Final

from callboard.runtime.core.errors import InvalidPayload

__all__ = ["PayloadMismatch", "mismatch"]

_NAMES_ONLY: Final = re.compile(
    r"Expected `[^`]*`(, got `[^`]*`)?|Object missing required field `[^`]*`|Object contains unknown field `[^`]*`|Field required"
)
"""What decoders say that holds names and types only. Other texts may quote the value."""


class PayloadMismatch(Exception):
    """Which fields of a stored request do not fit the handler's types."""


def mismatch(error: Exception) -> PayloadMismatch:
    """What ``error``, raised while the request was decoded, may say in a log."""
    if not isinstance(error, InvalidPayload):
        return PayloadMismatch(f"it cannot be decoded: {type(error).__name__}")
    fields = []
    for one in error.errors:
        told = _NAMES_ONLY.match(one.detail)
        fields.append(f"{one.pointer or 'the whole body'}{f': {told[0]}' if told else ''}")
    return PayloadMismatch(f"of the stored body these do not fit: {'; '.join(fields)}")
