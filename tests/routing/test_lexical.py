from __future__ import annotations

import pytest

from expert_router.routing.lexical import LexicalRouter
from support import (
    BOTH_QUESTION,
    CARS_QUESTION,
    EXAMPLES,
    EXPERTS,
    OTHER_QUESTION,
    SLEEP_QUESTION,
    UNSURE_QUESTION,
    lexical_router,
)

ROUTER = lexical_router()


def claimed(question: str) -> set[str]:
    return {name for name, p in ROUTER.score(question).experts.items() if p >= ROUTER.thresholds.accept}


@pytest.mark.parametrize(
    ("question", "experts"),
    [(SLEEP_QUESTION, {"sleep"}), (CARS_QUESTION, {"cars"}), (BOTH_QUESTION, {"sleep", "cars"}),
     (OTHER_QUESTION, set()), ("melatonin?", {"sleep"}), ("edsel seat belt", {"cars"}),
     ("who wrote about france", set())],
)  # fmt: skip
def test_the_words_of_a_question_say_whose_it_is(question: str, experts: set[str]) -> None:
    assert claimed(question) == experts


def test_the_examples_themselves_are_routed_right() -> None:
    assert {question: claimed(question) for question, _ in EXAMPLES} == dict(EXAMPLES)


def test_case_and_punctuation_do_not_matter() -> None:
    assert ROUTER.score("what is rem sleep") == ROUTER.score("WHAT, is: REM-sleep?!")


def test_none_is_the_chance_that_no_expert_is_needed() -> None:
    for question in (SLEEP_QUESTION, BOTH_QUESTION, OTHER_QUESTION, UNSURE_QUESTION, ""):
        scores = ROUTER.score(question)
        assert scores.none == pytest.approx((1 - scores.experts["sleep"]) * (1 - scores.experts["cars"]))


def test_unknown_words_leave_each_expert_its_share_of_the_examples() -> None:
    scores = ROUTER.score("zzz 睡眠 !?")
    assert scores == ROUTER.score("")
    assert all(0.3 < p < ROUTER.thresholds.accept for p in scores.experts.values())  # four examples of ten, smoothed


def test_an_endless_question_stays_a_probability() -> None:
    for word in ("sleep ", "france ", "zzz "):
        scores = ROUTER.score(word * 50_000)
        assert all(0.0 <= p <= 1.0 for p in (*scores.experts.values(), scores.none))


def test_earlier_turns_are_not_read() -> None:
    assert ROUTER.score("Why?", history=[SLEEP_QUESTION]) == ROUTER.score("Why?")


def test_without_examples_it_knows_nothing_and_still_answers() -> None:
    scores = LexicalRouter(tuple(EXPERTS), []).score("What is REM sleep?")
    assert scores.experts == {"sleep": 0.5, "cars": 0.5}


def test_it_scores_every_expert_it_was_given_even_one_without_examples() -> None:
    router = LexicalRouter(("sleep", "cars", "smell"), EXAMPLES)
    assert router.experts == ("sleep", "cars", "smell")
    assert router.score(SLEEP_QUESTION).experts["smell"] < 0.5
