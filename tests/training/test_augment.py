from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.data.labelled import LabelledQuestion
from expert_router.training.augment import PREAMBLES, joined_pairs, mistyped, reworded

SLEEP = [LabelledQuestion(f"Why do {word}s sleep?", frozenset({"sleep"}), "sleep") for word in ("cat", "dog", "owl")]
CARS = [LabelledQuestion(f"Who built the {word}.", frozenset({"cars"}), "cars") for word in ("Mini", "Beetle", "Golf")]
WINE = [LabelledQuestion(f"Where does {word} grow?", frozenset({"wine"}), "wine") for word in ("Syrah", "Merlot")]
NOBODYS = LabelledQuestion("What is the capital of France?", frozenset(), "other")
BOTH = LabelledQuestion("Which car first woke a sleepy driver?", frozenset({"sleep", "cars"}), "several topics")
QUESTIONS = [*SLEEP, *CARS, *WINE, NOBODYS, BOTH]
MARKS = {"sleep": "sleep", "cars": "built", "wine": "grow"}
"""A word that all questions of a field have, and no other."""


def fields(text: str) -> frozenset[str]:
    return frozenset(field for field, mark in MARKS.items() if mark in text)


def test_a_joined_question_needs_the_experts_of_both_its_halves() -> None:
    pairs = joined_pairs(QUESTIONS, 500, seed=0)
    assert len(pairs) == 500
    for pair in pairs:
        assert pair.experts == fields(pair.query), pair.query
    assert {pair.experts for pair in pairs} == {
        *(frozenset({one, other}) for one in MARKS for other in MARKS),  # of one field, and of each two
    }


def test_both_halves_are_whole_questions() -> None:
    """Up to the first half's mark and the second's first letter."""
    asked = {question.query.rstrip("?. ").lower() for question in (*SLEEP, *CARS, *WINE)}
    for pair in joined_pairs(QUESTIONS, 200, seed=1):
        text = pair.query.lower()
        first = max((each for each in asked if text.startswith(each)), key=len)
        assert any(text[len(first) :].rstrip("?. ").endswith(each) for each in asked), pair.query


def test_three_quarters_need_two_experts() -> None:
    pairs = joined_pairs(QUESTIONS, 4000, seed=0)
    assert sum(len(pair.experts) == 2 for pair in pairs) / len(pairs) == pytest.approx(0.75, abs=0.03)


def test_questions_of_no_expert_or_of_several_are_not_joined() -> None:
    text = " ".join(pair.query for pair in joined_pairs(QUESTIONS, 500, seed=0)).lower()
    assert "france" not in text
    assert "woke" not in text


@pytest.mark.parametrize("questions", [[], SLEEP, [*SLEEP, NOBODYS, BOTH]])
def test_one_field_alone_has_no_pairs(questions: list[LabelledQuestion]) -> None:
    assert joined_pairs(questions, 10, seed=0) == []


def test_the_seed_alone_decides_the_pairs() -> None:
    assert joined_pairs(QUESTIONS, 50, seed=3) == joined_pairs(QUESTIONS, 50, seed=3)
    assert joined_pairs(QUESTIONS, 50, seed=3) != joined_pairs(QUESTIONS, 50, seed=4)


def test_the_pairs_are_the_same_in_every_process() -> None:
    """Sets of names are ordered by Python's hash seed; the pairs must not be."""
    code = "import test_augment as t; print([(p.query, sorted(p.experts)) for p in t.joined_pairs(t.QUESTIONS, 50, 0)])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=os.path.dirname(__file__),  # noqa: PTH120
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_the_random_state_alone_decides_a_rewording() -> None:
    def reworded_all(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [reworded(question.query, rng) for question in QUESTIONS * 5]

    assert reworded_all(0) == reworded_all(0)
    assert reworded_all(0) != reworded_all(1)


@given(st.text("abcdefghijklmnopqrstuvwxyzABCXYZ ,'?.", max_size=80), st.integers(0, 2**32))
def test_a_rewording_loses_at_most_one_letter(query: str, seed: int) -> None:
    letters = Counter(filter(str.isalpha, query.lower()))
    left = Counter(filter(str.isalpha, reworded(query, random.Random(seed)).lower()))
    assert (letters - left).total() <= 1


def test_each_way_of_rewording_comes_as_often_as_meant() -> None:
    rng, n = random.Random(0), 4000
    query = "When did BMW buy Mini?"
    texts = [reworded(query, rng) for _ in range(n)]
    preambled = [text for text in texts if text.startswith(PREAMBLES)]
    assert len(preambled) / n == pytest.approx(0.12, abs=0.02)
    assert sum("?" not in text for text in texts) / n == pytest.approx(0.25, abs=0.03)
    assert sum("bmw" in text.lower() and "BMW" not in text for text in texts) / n == pytest.approx(0.25, abs=0.03)
    assert 0.3 < texts.count(query) / n < 0.5  # most often it stays as it is


@given(st.text("abcdefghijklmnopqrstuvwxyz ", max_size=40), st.integers(0, 2**32))
def test_a_typing_error_is_one_slip_inside_the_question(query: str, seed: int) -> None:
    slip = mistyped(query, random.Random(seed))
    if len(query) < 6:
        assert slip == query
        return
    assert (slip[0], slip[-2:] and len(slip) - len(query) in {-1, 0, 1}) == (query[0], True)
    differing = [at for at, (a, b) in enumerate(zip(query, slip, strict=False)) if a != b]
    if len(slip) == len(query):
        swapped = len(differing) == 2 and sorted(query) == sorted(slip)
        assert len(differing) <= 1 or swapped
    else:
        longer, shorter = sorted((query, slip), key=len, reverse=True)
        assert any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
