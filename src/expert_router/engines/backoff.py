"""How long something that failed is left alone: each time for twice as long, up to a bound (exponential backoff)."""

from __future__ import annotations

import random

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MOST_DOUBLED = 30
"""More would only make the number large."""


def doubled(pauses: int, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> float:
    """Seconds that the next pause takes, after so many."""
    return min(first_s * 2.0 ** min(pauses, MOST_DOUBLED), longest_s)


def jittered(seconds: float) -> float:
    """About as long, never for all alike: what waits together would come back together."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
