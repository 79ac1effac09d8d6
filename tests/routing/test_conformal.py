from __future__ import annotations

import numpy as np
import pytest

from expert_router.routing.conformal import conformal_threshold

TENTHS = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6], dtype=np.float32)


@pytest.mark.parametrize(
    ("coverage", "threshold"),
    [(0.9, 0.1), (0.89, 0.1), (0.8, 0.2), (0.79, 0.2), (0.5, 0.5), (0.91, 0.0), (0.99, 0.0)],
)
def test_so_many_of_the_calibration_questions_lie_below_as_the_coverage_allows(
    coverage: float, threshold: float
) -> None:
    """Nine questions and the one to come are ten: at 90 % one of the ten may lie below."""
    assert conformal_threshold(TENTHS, coverage) == pytest.approx(threshold)


def test_without_calibration_questions_everything_is_in_the_set() -> None:
    assert conformal_threshold(np.array([], dtype=np.float32), 0.9) == 0.0


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_new_questions_are_covered_as_often_as_was_asked_for(coverage: float) -> None:
    rng = np.random.default_rng(0)
    held = [
        float(rng.beta(5, 1)) >= conformal_threshold(rng.beta(5, 1, 99).astype(np.float32), coverage)
        for _ in range(20_000)
    ]
    assert np.mean(held) == pytest.approx(coverage, abs=0.01)
