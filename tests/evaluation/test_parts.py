from __future__ import annotations

import pytest

from expert_router.data.labelled import LabelledQuestion
from expert_router.errors import DataError
from expert_router.evaluation.parts import measure_parts

QUESTIONS = [
    LabelledQuestion(f"{begins} {word} {n}", frozenset([expert]), expert)
    for expert, word in (("sleep", "dream"), ("cars", "wheel"))
    for n, begins in enumerate(("tell me of a", "what is a", "why is there a"))
]


def by_word(text: str) -> dict[str, float]:
    return {"sleep": 0.9 if "dream" in text else 0.1, "cars": 0.9 if "wheel" in text else 0.1}


def test_who_is_told_apart_by_words_is_cut_where_the_questions_were_joined() -> None:
    report = measure_parts(QUESTIONS, by_word, count=60)
    assert report.count == 60
    assert report.exact + report.near + report.whole == 60
    assert report.exact >= 50  # " " joins too, and there is no cut
    assert 0 < report.latency_ms[0] <= report.latency_ms[1]


def test_who_is_never_told_apart_gets_everything() -> None:
    report = measure_parts(QUESTIONS, lambda _: {"sleep": 0.9, "cars": 0.9}, count=20)
    assert (report.exact, report.near, report.whole) == (0, 0, 20)


def test_the_same_seed_joins_the_same_questions() -> None:
    one, same, other = (measure_parts(QUESTIONS, by_word, count=40, seed=seed) for seed in (1, 1, 2))
    assert (
        (one.exact, one.near, one.whole)
        == (same.exact, same.near, same.whole)
        != (other.exact, other.near, other.whole)
    )


def test_questions_of_one_expert_alone_cannot_be_joined() -> None:
    with pytest.raises(DataError, match="two experts"):
        measure_parts(QUESTIONS[:3], by_word, count=2)
