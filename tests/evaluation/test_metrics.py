from __future__ import annotations

import pytest

from expert_router.evaluation.metrics import TextMetrics
from support import WordEncoder

METRICS = TextMetrics(WordEncoder({"automobile": "car"}))


def test_token_f1_is_the_harmonic_mean_over_words_without_articles() -> None:
    # 2 of 4 words are right, 2 of 3 are found
    assert METRICS.token_f1("The car was Carl Benz", ["a Carl Benz, 1886"]) == pytest.approx(
        2 * 0.5 * 2 / 3 / (0.5 + 2 / 3)
    )
    assert METRICS.token_f1("carl benz!", ["Carl Benz"]) == 1.0
    assert METRICS.token_f1("", ["Carl Benz"]) == 0.0


def test_words_of_other_alphabets_and_accents_are_whole() -> None:
    assert METRICS.token_f1("Citroën", ["Citro n"]) == 0.0
    assert METRICS.token_f1("Жигули", ["жигули"]) == 1.0


def test_of_several_references_the_closest_counts() -> None:
    assert METRICS.token_f1("in 1886", ["in 1886", "January 1886"]) == 1.0
    assert METRICS.rouge_l("in 1886", ["January", "in 1886"]) == 1.0
    assert METRICS.chrf("in 1886", ["January", "in 1886"]) == pytest.approx(1.0)
    assert METRICS.similarity("in 1886", ["January", "in 1886"]) == pytest.approx(1.0)


def test_rouge_l_minds_the_order_and_token_f1_does_not() -> None:
    assert METRICS.token_f1("benz carl", ["carl benz"]) == 1.0
    assert METRICS.rouge_l("benz carl", ["carl benz"]) == 0.5


def test_chrf_finds_the_same_stem_where_no_word_is_the_same() -> None:
    assert METRICS.token_f1("sleeping", ["sleep"]) == 0.0
    assert 0.4 < METRICS.chrf("sleeping", ["sleep"]) < 1.0
    assert METRICS.chrf("", ["sleep"]) == 0.0


def test_similarity_is_of_meaning_and_needs_an_encoder() -> None:
    near, far = METRICS.similarity("an automobile", ["a car"]), METRICS.similarity("an automobile", ["a nap"])
    assert near is not None
    assert far is not None
    assert near > far + 0.2
    assert TextMetrics(None).similarity("a", ["a"]) is None
