from __future__ import annotations

import pytest

from expert_router.conversation import FOLLOW_UP_WORDS, leans_back, standalone

LEANING = [
    "And how long does it last?",
    "and then?",
    "What about babies?",
    "How about in winter?",
    "why?",
    "Why not?!",
    "  Why",
    "Tell me more",
    "More, please",
    "Or alcohol?",
    "Is that dangerous?",
    "Who built them?",
    "When was he born?",
    "What was its top speed?",
    "THEN WHAT",
]
STANDING = [
    "What is REM sleep?",
    "Why did the Edsel fail?",
    "Who founded Ferrari?",
    "How do I cook pasta?",
    "",
    "42",
    "Whose item sits where?",
    # Names that only begin like a word that leans back.
    "Orexin: what does?",
    "Soviet cars of 1950?",
    "André Citroën's first car?",
    "Button's Formula One title?",
    "Oregon's first speed limit?",
    "Morello engines?",
]


@pytest.mark.parametrize("question", LEANING)
def test_a_short_turn_that_points_back_leans_on_the_turn_before(question: str) -> None:
    assert leans_back(question)
    assert standalone(question, ["What is REM sleep?"]) == f"What is REM sleep? {question}"


@pytest.mark.parametrize("question", STANDING)
def test_a_question_that_says_what_it_is_about_stands_alone(question: str) -> None:
    assert not leans_back(question)
    assert standalone(question, ["What is REM sleep?"]) == question


def test_a_long_turn_stands_alone_whatever_words_it_has() -> None:
    short = "and is it " + " ".join(["very"] * (FOLLOW_UP_WORDS - 3))
    assert leans_back(short)
    assert not leans_back(f"{short} long")


def test_the_first_turn_has_nothing_to_lean_on() -> None:
    assert standalone("And how long does it last?", []) == "And how long does it last?"


def test_only_the_turn_just_before_is_taken() -> None:
    history = ["Who founded Ferrari?", "What is REM sleep?"]
    assert standalone("How long is it?", history) == "What is REM sleep? How long is it?"
