from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.errors import TrainingError
from expert_router.training.abstention import FEWEST, Asked, fit_abstention

HASH = "8a9db59f40f140b8622228bad56e6bbab84acb55869328cc3ce6ca408ffff528"


def questions(count: int, *, doubt: float = 2.0, match: float = 0.3, seed: int = 0) -> list[Asked]:
    """As many of either kind, whose doubt and match differ by so much: a standard deviation and a tenth of it."""
    rng = np.random.default_rng(seed)
    return [
        Asked(
            rng.normal(0 if answerable else doubt),
            rng.normal(0.9 if answerable else 0.9 - match, 0.1),
            answerable,
            False,
        )
        for answerable in (True, False)
        for _ in range(count)
    ]


def shares(rule_refuses: list[bool], asked: list[Asked]) -> tuple[float, float]:
    by_kind = {
        kind: [r for r, a in zip(rule_refuses, asked, strict=True) if a.answerable == kind] for kind in (True, False)
    }
    return float(np.mean(by_kind[True])), float(np.mean(by_kind[False]))


@pytest.mark.parametrize("most", [0.02, 0.1, 0.3])
def test_so_many_answerable_questions_are_refused_as_was_asked_for(most: float) -> None:
    asked = questions(3000)
    rule = fit_abstention(asked, HASH, false_refusals=most).rule
    unseen = questions(6000, seed=1)
    for among, tolerance in ((asked, 0.005), (unseen, 0.02)):
        refused, _ = shares([rule.refuses(a.doubt, a.match) for a in among], among)
        assert refused == pytest.approx(most, abs=tolerance)


def test_both_signs_together_tell_more_than_either() -> None:
    calibrated = fit_abstention(questions(300, doubt=1.0, match=0.1), HASH, false_refusals=0.1)
    by_doubt, by_match, by_rule = calibrated.auroc
    assert by_rule > max(by_doubt, by_match) + 0.03
    assert calibrated.rule.doubt > 0 > calibrated.rule.match


@pytest.mark.parametrize(
    ("doubt", "match", "weighed"), [(0.2, 0.2, "match"), (2.5, 0.02, "doubt"), (3.5, 0.1, "doubt")]
)
def test_a_sign_that_adds_nothing_to_the_other_is_left_out(doubt: float, match: float, weighed: str) -> None:
    asked = questions(300, doubt=doubt, match=match)
    calibrated = fit_abstention(asked, HASH, false_refusals=0.1)
    rule = calibrated.rule
    assert (rule.doubt > 0, rule.match < 0) == (weighed == "doubt", weighed == "match")
    assert shares([rule.refuses(a.doubt, a.match) for a in asked], asked)[0] == pytest.approx(0.1, abs=0.01)
    by_doubt, by_match, by_rule = calibrated.auroc
    assert by_rule == pytest.approx(by_doubt if weighed == "doubt" else by_match, abs=0.01)


def test_what_is_reported_is_measured_on_questions_that_fitted_nothing() -> None:
    """On few questions a rule looks better on its own than on others: it refuses fewer that are answerable."""
    own, reported = [], []
    for seed in range(30):
        asked = questions(FEWEST + 2, doubt=1.5, match=0.1, seed=seed)
        calibrated = fit_abstention(asked, HASH, false_refusals=0.1)
        rule = calibrated.rule
        own.append(shares([rule.refuses(a.doubt, a.match) for a in asked], asked)[0])
        reported.append(calibrated.by_rule.answerable)
    assert np.mean(own) == pytest.approx(0.1, abs=0.04)
    assert np.mean(reported) > np.mean(own) + 0.01


def test_what_tells_nothing_makes_no_rule() -> None:
    with pytest.raises(TrainingError, match=r"would refuse by chance"):
        fit_abstention(questions(60, doubt=0.0, match=0.0), HASH, false_refusals=0.1)


@pytest.mark.parametrize("wrong", [{"doubt": -2.0, "match": 0.1}, {"match": -0.3}])
def test_an_expert_that_doubts_what_it_knows_makes_no_rule(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=r"would refuse by chance"):
        fit_abstention(questions(200, **wrong), HASH, false_refusals=0.1)


def test_what_the_expert_refuses_of_itself_is_said_beside_it() -> None:
    asked = [replace(each, refused=n % 4 == 0 or not each.answerable) for n, each in enumerate(questions(40))]
    by_itself = fit_abstention(asked, HASH, false_refusals=0.1).by_itself
    assert (by_itself.answerable, by_itself.unanswerable) == (0.25, 1.0)


def test_the_rule_names_the_weights_it_is_for() -> None:
    assert RULE.adapter == HASH[:12]


@given(st.floats(-10, 10), st.floats(0, 2), st.floats(0.01, 5))
def test_more_doubt_and_less_match_never_turn_a_refusal_into_an_answer(doubt: float, match: float, more: float) -> None:
    rule = RULE
    if rule.refuses(doubt, match):
        assert rule.refuses(doubt + more, match)
        assert rule.refuses(doubt, match - more)


RULE = fit_abstention(questions(100), HASH, false_refusals=0.1).rule


@pytest.mark.parametrize("few", [True, False])
def test_too_few_questions_of_a_kind_are_an_error_with_their_number(few: bool) -> None:
    asked = [a for a in questions(FEWEST) if a.answerable != few] + [
        a for a in questions(FEWEST - 1) if a.answerable == few
    ]
    with pytest.raises(TrainingError, match=rf"there are {'19 and 20' if few else '20 and 19'}"):
        fit_abstention(asked, HASH, false_refusals=0.1)


def test_none_at_all_is_the_same_error() -> None:
    with pytest.raises(TrainingError, match="there are 0 and 0"):
        fit_abstention([], HASH, false_refusals=0.1)
