from __future__ import annotations

import numpy as np
import pytest

from expert_router.data.intents import IntentData
from expert_router.evaluation.scale import measure_scale
from support import WordEncoder

INTENTS = {
    "alarm": "wake alarm clock morning",
    "sums": "add plus minus number",
    "music": "song band tune chorus",
    "food": "bread soup recipe oven",
    "trips": "train ticket hotel border",
}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [
        (" ".join([*rng.choice(words.split(), 3), f"please{rng.integers(50)}"]), intent)
        for _ in range(count)
        for intent, words in INTENTS.items()
    ]


DATA = IntentData("toy", rows(40, 1), rows(40, 2), rows(20, 3), [f"river mountain sea{n}" for n in range(30)], "0" * 64)


def test_each_count_is_a_router_with_so_many_of_the_intents_as_experts() -> None:
    two, four = measure_scale(DATA, WordEncoder(), 0.95, counts=(2, 4))
    assert (two.experts, four.experts) == (2, 4)
    for result in (two, four):
        assert result.right > 0.9
        assert result.kept_away > 0.9
        assert result.kept_away_unseen is not None
        assert 0 < result.p50_ms <= result.p95_ms
        assert result.fit_s > 0


def test_each_question_is_embedded_once_however_many_routers_are_fitted() -> None:
    encoder = WordEncoder()
    measure_scale(DATA, encoder, 0.95, counts=(2, 4))
    fitted = {question for question, _ in [*DATA.train, *DATA.validation]}
    assert len(encoder.read) == len(set(encoder.read))
    assert fitted <= set(encoder.read)


def test_without_out_of_scope_questions_nothing_is_said_of_them() -> None:
    bare = IntentData("toy", DATA.train, DATA.validation, DATA.test, [], "0" * 64)
    (result,) = measure_scale(bare, WordEncoder(), 0.95, counts=(2,))
    assert result.kept_away_unseen is None
    assert result.right == pytest.approx(measure_scale(bare, WordEncoder(), 0.95, counts=(2,))[0].right)
