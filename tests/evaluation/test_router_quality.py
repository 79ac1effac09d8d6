from __future__ import annotations

import numpy as np
import pytest

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.router_quality import calibration_error, router_quality
from expert_router.routing.policy import Policy
from expert_router.types import Scores, Thresholds
from support import TITLES

POLICY = Policy(Thresholds(accept=0.6, clarify=0.4), TITLES)
SURE_SLEEP, SURE_CARS, NEITHER = (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9)
BOTH, UNSURE = (0.9, 0.9, 0.1), (0.5, 0.5, 0.1)


def quality(*questions: tuple[str, tuple[float, float, float]]):  # type: ignore[no-untyped-def]
    """Of questions given as the experts needed, and the probabilities of sleep, cars and none."""
    examples = [LabelledQuestion(str(n), frozenset(needed.split()), "any") for n, (needed, _) in enumerate(questions)]
    scores = [Scores({"sleep": sleep, "cars": cars}, none) for _, (sleep, cars, none) in questions]
    return router_quality(examples, [POLICY.decide(each) for each in scores], resamples=20)


def test_the_confusion_says_who_was_taken_for_whom() -> None:
    measured = quality(
        ("sleep", SURE_SLEEP),
        ("sleep", SURE_CARS),
        ("cars", SURE_CARS),
        ("sleep cars", BOTH),
        ("", NEITHER),
        ("", UNSURE),
    )
    assert measured.classes == ["cars", "sleep", "cars + sleep", "none", "asks back"]
    assert measured.confusion == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0],
    ]


def test_coverage_is_of_what_is_needed_and_the_size_of_all_that_may_be() -> None:
    measured = quality(
        ("sleep", SURE_SLEEP), ("cars", SURE_SLEEP), ("sleep cars", BOTH), ("cars", UNSURE), ("", NEITHER)
    )
    assert measured.coverage.value == pytest.approx(4 / 5)
    assert measured.set_size.value == pytest.approx((1 + 1 + 2 + 2 + 1) / 5)


def test_macro_f1_weighs_a_rare_class_like_a_common_one() -> None:
    measured = quality(*[("sleep", SURE_SLEEP)] * 8, ("cars", SURE_SLEEP), ("", NEITHER))
    sleep_f1 = 2 * 8 / (2 * 8 + 1)
    assert measured.macro_f1.value == pytest.approx((sleep_f1 + 0 + 1) / 3)
    assert measured.macro_f1.n == 10


def test_auroc_is_of_none_of_them_and_needs_both_kinds() -> None:
    some = [("sleep", (0.9, 0.1, 0.3)), ("sleep", (0.9, 0.1, 0.6)), ("", (0.1, 0.1, 0.5)), ("", (0.1, 0.1, 0.9))]
    assert quality(*some).none_auroc.value == pytest.approx(3 / 4)
    assert quality(*some[:2]).none_auroc is None


def test_calibration_error_is_the_gap_between_said_and_so() -> None:
    said = np.array([[0.8, 0.8], [0.8, 0.8], [0.15, 0.15]])
    so = np.array([[True, True], [True, False], [False, False]])
    assert calibration_error(said, so) == pytest.approx((4 * 0.05 + 2 * 0.15) / 6)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_reliability_has_points_for_each_expert_and_for_none() -> None:
    measured = quality(("sleep", SURE_SLEEP), ("sleep", SURE_SLEEP), ("cars", SURE_SLEEP), ("", NEITHER))
    assert set(measured.reliability) == {"cars", "sleep", "none"}
    assert measured.reliability["sleep"] == [
        (pytest.approx(0.1), 0.0, 1),
        (pytest.approx(0.9), pytest.approx(2 / 3), 3),
    ]
