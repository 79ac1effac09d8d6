from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expert_router.data.intents import IntentData
from expert_router.evaluation.intents import FALSE_ALARMS, IntentHead, measure_intents
from support import WordEncoder

INTENTS = {"alarm": "wake alarm clock morning", "sums": "add plus minus number", "music": "song band tune chorus"}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Three of an intent's four words and a few that say nothing."""
    rng = np.random.default_rng(seed)
    return [
        (" ".join([*rng.choice(words.split(), 3, replace=False), f"please{rng.integers(50)}"]), intent)
        for _ in range(count)
        for intent, words in INTENTS.items()
    ]


DATA = IntentData("toy", rows(40, 1), rows(40, 2), rows(40, 3), [f"river mountain sea{n}" for n in range(30)], "0" * 64)


def embedded(questions: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([WordEncoder().encode(q) for q, _ in questions]), np.array([intent for _, intent in questions])


def test_what_is_easily_told_apart_is_and_the_counts_are_of_the_data() -> None:
    report = measure_intents(DATA, WordEncoder())
    assert (report.train, report.validation, report.test, report.out_of_scope, report.intents) == (120, 120, 120, 30, 3)
    assert report.accuracy == 1.0
    assert (report.auroc, report.auprc, report.oos_recall) == pytest.approx((1.0, 1.0, 1.0))
    assert 0 <= report.false_alarm < 0.15
    assert 0 <= report.ece < 0.1
    assert 0 < report.embed_s < report.fit_s
    assert 0 < report.p50_ms <= report.p95_ms


def test_out_of_scope_questions_that_sound_like_an_intent_cannot_be_told_apart() -> None:
    report = measure_intents(replace(DATA, out_of_scope=[question for question, _ in rows(10, 9)]), WordEncoder())
    assert report.auroc == pytest.approx(0.5, abs=0.15)
    assert report.oos_recall == pytest.approx(FALSE_ALARMS, abs=0.1)


def test_wrong_labels_are_counted_as_wrong_and_make_it_unsure() -> None:
    turned = [(question, "alarm" if intent == "music" else intent) for question, intent in DATA.test]
    report = measure_intents(replace(DATA, test=turned), WordEncoder())
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.ece == pytest.approx(1 / 3, abs=0.05)


def test_without_out_of_scope_questions_nothing_is_said_of_them() -> None:
    report = measure_intents(replace(DATA, out_of_scope=[]), WordEncoder())
    assert (report.auroc, report.auprc, report.oos_recall) == (None, None, None)
    assert report.accuracy == 1.0


def test_the_threshold_refuses_its_share_of_the_validation_questions_and_comes_from_them_alone() -> None:
    head = IntentHead.fit(embedded(DATA.train), embedded(DATA.validation))
    refused = head.in_scope(embedded(DATA.validation)[0]) < head.threshold
    assert refused.mean() == pytest.approx(FALSE_ALARMS, abs=1 / 120)


def test_a_decision_is_the_likeliest_intent_or_none() -> None:
    head = IntentHead.fit(embedded(DATA.train), embedded(DATA.validation))
    assert head.decide(WordEncoder().encode("add number plus")) == "sums"
    assert head.decide(WordEncoder().encode("river mountain sea")) is None


def test_probabilities_are_of_sum_one_and_their_temperature_leaves_the_order() -> None:
    head = IntentHead.fit(embedded(DATA.train), embedded(DATA.validation))
    features_ND, _ = embedded(DATA.test)
    probabilities_NI = head.probabilities(features_ND)
    assert probabilities_NI.sum(axis=1) == pytest.approx(np.ones(len(features_ND)))
    assert np.array_equal(probabilities_NI.argmax(axis=1), head.model.predict_proba(features_ND).argmax(axis=1))
