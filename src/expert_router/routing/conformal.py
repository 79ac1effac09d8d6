"""Prediction sets with a guarantee: split conformal prediction (Vovk et al. 2005; Sadinle, Lei and Wasserman 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def conformal_threshold(conformity_N: NDArray[np.float32], coverage: float) -> float:
    """Who is at least this probable is in the set.

    ``conformity_N`` are the probabilities that questions which trained nothing gave what they truly need. A further
    question that comes as they did has what it needs in its set with a probability of at least ``coverage``.
    """
    left_out = int((1 - coverage) * (len(conformity_N) + 1) + 1e-9)
    return float(np.sort(conformity_N)[left_out - 1]) if left_out else 0.0
