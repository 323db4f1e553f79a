"""How long to wait before a retry. Pure: the random number is an argument."""

__all__ = ["JITTER", "backoff_ms"]

JITTER = 0.2
"""Width of the jitter: the delay is drawn from 80 % to 120 %. Source: the issue that asked for it; River and Oban do the same."""


def backoff_ms(retry: int, *, base_seconds: float, max_seconds: float, random: float) -> int:
    """Milliseconds before retry number ``retry`` (1 for the first): ``base * 2**(retry-1)``, capped, with jitter.

    ``random`` is uniform in [0, 1). The cap holds before the jitter, so that capped retries spread too.
    """
    if retry < 1:
        raise ValueError("retries count from 1")
    doubled = base_seconds * 2 ** min(retry - 1, 1000) if base_seconds else 0.0
    seconds = min(doubled, max_seconds)
    return round(seconds * (1 - JITTER + 2 * JITTER * random) * 1000)
