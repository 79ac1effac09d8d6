"""How sure a measurement is: a figure with its 95 % interval and the number of questions behind it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Z = 1.96
RESAMPLES = 1000
SEED = 20_261_122


@dataclass(frozen=True, slots=True)
class Estimate:
    """``low`` and ``high`` are the 95 % interval, ``n`` the questions that the figure is of."""

    value: float
    low: float
    high: float
    n: int


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    p = right / count
    centre, half = p + Z * Z / (2 * count), Z * ((p * (1 - p) + Z * Z / (4 * count)) / count) ** 0.5
    return (centre - half) / (1 + Z * Z / count), (centre + half) / (1 + Z * Z / count)


def share(marks: Sequence[bool]) -> Estimate | None:
    """How often it was so; ``None`` of nothing."""
    return share_of_some(marks) if marks else None


def share_of_some(marks: Sequence[bool]) -> Estimate:
    """How often it was so, of one or more."""
    return Estimate(sum(marks) / len(marks), *wilson(sum(marks), len(marks)), len(marks))


def bootstrap(
    count: int, statistic: Callable[[NDArray[np.intp]], float], resamples: int = RESAMPLES
) -> Estimate | None:
    """``statistic`` gets row numbers; its interval is of the percentiles over rows drawn anew (Efron 1979).

    The same rows are drawn every time, so that figures of the same questions can be compared. ``None`` where the
    statistic is not a number for all rows; draws for which it is none do not count.
    """
    value = float(statistic(np.arange(count))) if count else float("nan")
    if not isfinite(value):
        return None
    rows_RN = np.random.default_rng(SEED).integers(count, size=(resamples, count))
    drawn = np.array([statistic(rows) for rows in rows_RN], dtype=float)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), count)


def mean(values: Sequence[float]) -> Estimate | None:
    array = np.array(values, dtype=float)
    return bootstrap(len(array), lambda rows: float(array[rows].mean()))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate | None:
    """How much larger ours are on average, question by question: what both find hard or easy cancels out."""
    return mean(np.subtract(ours, theirs).tolist())
