"""What most wait and what few do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def p50_and(high: int, values: Sequence[float | None]) -> tuple[float, float]:
    """The 50th percentile and a higher one, in the unit of ``values``."""
    p50, above = np.percentile(np.array(values, dtype=float), [50, high])
    return float(p50), float(above)
