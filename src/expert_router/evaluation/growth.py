"""How memory grew while it was measured, by a robust line through all samples.

The slope is that of Theil (1950) and Sen (1968): the median of all slopes between two samples. The first and the last
alone would say where the noise was.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAT = 0.05
"""So much may memory grow, of what it is, over the whole time."""
FILLS = 0.5
"""What fills up grows in the second half by less than this share of what it did in the first."""
MOST_POINTS = 2000
"""Samples that a line goes through; more are thinned out evenly, as their pairs grow with the square."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Of a process, or of all together. ``share`` is of the median, over the whole time; the halves in bytes a request.

    A leak grows by the same in both halves, what has a bound by less and less.
    """

    name: str
    share: float
    first_half: float
    second_half: float

    @property
    def flat(self) -> bool:
        return self.share <= FLAT

    @property
    def verdict(self) -> str:
        if self.flat:
            return "flat"
        return "fills up" if self.second_half < FILLS * self.first_half else "grows on"

    def __str__(self) -> str:
        ways = {"flat": "flat", "fills up": "less and less, as what fills up", "grows on": "on and on, as a leak"}
        halves = f"{self.first_half:+,.0f} bytes a request in the first half, {self.second_half:+,.0f} in the second"
        return f"memory grew by {self.share:.1%}, more than {FLAT:.0%} ({halves}: {ways[self.verdict]})"


def growth_of(name: str, requests: Sequence[int], memory_bytes: Sequence[int]) -> Growth:
    """Over the number of requests that were over at each sample; 0 of fewer than two."""
    if not requests:
        return Growth(name, 0.0, 0.0, 0.0)
    middle = len(requests) // 2
    share = theil_sen(requests, memory_bytes) * (requests[-1] - requests[0]) / median(memory_bytes)
    halves = [theil_sen(requests[half], memory_bytes[half]) for half in (slice(middle), slice(middle, None))]
    return Growth(name, share, *halves)


def theil_sen(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The median slope between two points; 0 of fewer than two."""
    step = max(1, len(xs) // MOST_POINTS)
    x_N, y_N = np.asarray(xs[::step], dtype=float), np.asarray(ys[::step], dtype=float)
    first, second = np.triu_indices(len(x_N), 1)
    apart = x_N[second] > x_N[first]
    slopes = (y_N[second] - y_N[first])[apart] / (x_N[second] - x_N[first])[apart]
    return float(np.median(slopes)) if slopes.size else 0.0
