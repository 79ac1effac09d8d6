from __future__ import annotations

import time

import pytest

from expert_router.conversation import (
    FOLLOW_UP_WORDS,
    READ,
    context,
    goes_back,
    is_courtesy,
    leans_back,
    plain,
    points_back,
    says_little,
    standalone,
)

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


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Hello! I hope you are well. What is REM sleep?", "What is REM sleep?"),
        ("Good evening, could you please help me with this: who built the Mini?", "who built the Mini?"),
        ("sorry to bother you, but I would like to know: why do we dream?", "why do we dream?"),
        ("Hi there :) what is a nap", "what is a nap"),
        ("I have a quick question for you. How old is Ford?", "How old is Ford?"),
        ("Hey, just curious: who named the Beetle", "who named the Beetle"),
        ("What is REM sleep, please?", "What is REM sleep"),
        ("Who founded Ferrari? Thanks in advance!", "Who founded Ferrari"),
    ],
)
def test_courtesies_are_not_what_is_asked(said: str, asked: str) -> None:
    assert plain(said) == asked


@pytest.mark.parametrize(
    "question",
    [
        "thanks",
        "Thank you!",
        "hi",
        "please",
        "I was diagnosed with narcolepsy and I want to know, is it bad?",
        "Could you tell me who founded Ferrari?",
        "My car won't start, any help?",
        "Hi-Fi in cars, since when?",
        "I know a song about a road. Which car is in it?",
        "Sorry",
        "",
    ],
)
def test_what_is_no_courtesy_or_nothing_else_stays(question: str) -> None:
    assert plain(question) == question


@pytest.mark.parametrize("question", LEANING)
def test_a_short_turn_that_points_back_leans_on_the_turn_before(question: str) -> None:
    assert leans_back(question)
    assert standalone(question, ["What is REM sleep?"]) == f"What is REM sleep? {plain(question)}"


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


@pytest.mark.parametrize(
    "turn",
    [
        "thanks",
        "Great, that helps!",
        "ok, got it",
        "wow",
        "thanks, I will try that",
        "hello",
        "Bye!",
        "fair enough",
        "Danke",
    ],
)
def test_courtesies_and_remarks_ask_nothing(turn: str) -> None:
    assert is_courtesy(turn)


@pytest.mark.parametrize(
    "turn",
    [
        "thanks, and in Italy?",
        "ok and what about naps",
        "wow, why?",
        "great whites: do they sleep?",
        "",
        "How much?",
        "so much for the Edsel, what came next",
    ],
)
def test_what_asks_something_is_no_courtesy(turn: str) -> None:
    assert not is_courtesy(turn)


@pytest.mark.parametrize(
    "turn",
    [
        "Back to the seals: what wore them out?",
        "ok, last one on her: did he know?",
        "and going back to naps, how long",
        "Right, my first question again",
        "in the end, back to dreams please",
    ],
)
def test_an_earlier_subject_is_announced(turn: str) -> None:
    assert goes_back(turn)


@pytest.mark.parametrize(
    "turn",
    [
        "Who directed Back to the Future?",
        "does my back hurt from it",
        "how do I get back to sleep",
        "the first one?",
        "",
    ],
)
def test_back_alone_announces_nothing(turn: str) -> None:
    assert not goes_back(turn)


@pytest.mark.parametrize("said", ["thank you ", "ok, ", "got you, ", ". ", "brilliant great stuff ", "and then "])
def test_endless_courtesies_are_read_at_once(said: str) -> None:
    started = time.perf_counter()
    is_courtesy(said * 2_000 + "zebra")
    goes_back(said * 2_000 + "zebra")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("said", [" ", ", ", "hi, ", "please ", "ok ", "a", ". x", "word "])
def test_a_megabyte_is_read_by_its_beginning(said: str) -> None:
    started = time.process_time()
    turn = f"x{said * (1_000_000 // len(said))}x"
    assert len(plain(turn)) <= READ
    assert not is_courtesy(turn)
    goes_back(turn)
    standalone(turn, [turn, turn])
    assert time.process_time() - started < 2


def test_how_much_a_turn_says_of_its_own() -> None:
    assert points_back("on whom?")
    assert points_back("and later in his life?")
    assert says_little("sharks too?")
    assert not points_back("sharks too?")
    assert not says_little("How do I cook pasta with tomatoes?")
    assert not points_back("2+2")


def test_what_a_follow_up_is_about_is_the_last_turn_that_stands_and_what_followed_on_it() -> None:
    history = ["Who founded Ferrari?", "What is REM sleep?", "thanks!", "and how long does it last in babies?", "why?"]
    assert context(history) == "What is REM sleep? and how long does it last in babies?"
    assert context([]) == ""
    assert context(["thanks"]) == ""
    assert standalone("And why is that?", history) == f"{context(history)} And why is that?"
