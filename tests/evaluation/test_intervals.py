from __future__ import annotations

import numpy as np
import pytest

from expert_router.evaluation.intervals import Estimate, bootstrap, mean, paired_difference, share, wilson


def test_a_share_has_wilsons_interval() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert share([True, False, False, True]) == Estimate(0.5, *wilson(2, 4), 4)
    assert share([]) is None


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(0.6, 0.2, size=400)
    estimate = mean(values.tolist())
    assert estimate is not None
    assert estimate.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert estimate.n == 400


def test_the_same_questions_give_the_same_interval() -> None:
    assert mean([0.1, 0.9, 0.4]) == mean([0.1, 0.9, 0.4])


def test_what_all_find_hard_cancels_out_of_a_paired_difference() -> None:
    """Both vary by half from question to question; one is always a little better."""
    theirs = [0.0, 0.5, 0.1, 0.4, 0.9, 0.3, 0.8, 0.2]
    ours = [value + 0.05 for value in theirs]
    difference, alone = paired_difference(ours, theirs), mean(ours)
    assert difference is not None
    assert alone is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.05, 0.05, 0.05))
    assert alone.high - alone.low > 0.3


def test_draws_without_a_figure_do_not_count_and_no_figure_is_none() -> None:
    values = np.array([1.0, 2.0, np.nan])
    assert bootstrap(3, lambda rows: float(values[rows].mean())) is None
    of_two = bootstrap(2, lambda rows: float("nan") if rows[0] == rows[1] else 1.0)
    assert of_two == Estimate(1.0, 1.0, 1.0, 2)
    assert mean([]) is None
