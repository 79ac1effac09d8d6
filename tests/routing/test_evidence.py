from __future__ import annotations

import numpy as np
import pytest

from expert_router.routing.evidence import fit_evidence

EXAMPLES = [
    ("What is narcolepsy?", frozenset({"sleep"})),
    ("narcolepsy treatment", frozenset({"sleep"})),
    ("Who founded Ferrari?", frozenset({"cars"})),
    ("What is the capital of France?", frozenset()),
]
EVIDENCE = fit_evidence(EXAMPLES, ("sleep", "cars"))


def test_a_word_speaks_for_the_field_it_was_seen_in_and_against_the_other() -> None:
    sleep, cars = EVIDENCE.weights_of("Narcolepsy!")[:, 0]
    assert sleep > 1
    assert cars < 0


def test_the_weight_is_the_log_ratio_of_the_smoothed_rates() -> None:
    words = sum(len(text.split()) for text, _ in EXAMPLES)  # 3 + 2 + 3 + 6
    inside, vocabulary = 5, 11
    expected = np.log((2 + 0.5) / (inside + 0.5 * vocabulary)) - np.log(0.5 / (words - inside + 0.5 * vocabulary))
    assert EVIDENCE.weights_of("narcolepsy")[0, 0] == pytest.approx(expected, abs=1e-5)


def test_unknown_words_say_nothing() -> None:
    assert EVIDENCE.strongest("zzz 睡眠 !?").tolist() == [0, 0]
    assert EVIDENCE.log_odds("") == pytest.approx(EVIDENCE.prior_E)


def test_the_strongest_word_counts_once_however_often_it_comes() -> None:
    once, often = EVIDENCE.strongest("narcolepsy"), EVIDENCE.strongest("What is narcolepsy " * 1000)
    assert often.tolist() == once.tolist()
    assert once[0] == EVIDENCE.weights_of("narcolepsy")[0, 0]
    assert once[1] == 0


def test_without_examples_there_is_no_evidence() -> None:
    nothing = fit_evidence([], ("sleep", "cars"))
    assert nothing.strongest("What is REM sleep?").tolist() == [0, 0]
