from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import load_experts
from expert_router.routing.explanation import MOST_READ, MOST_WORDS, explain, without
from expert_router.routing.policy import Policy
from expert_router.serving.build import build_policy, build_router
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from expert_router.types import GENERAL, Scores
from support import BOTH_QUESTION, CARS_QUESTION, TITLES, FixedRouter, lexical_router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.ports import Router
    from expert_router.types import Explanation

FERRARI = "who founded Ferrari?"
REM = "What happens in the brain during REM sleep?"
FOLLOW_UP = "And how long does it last?"


@pytest.fixture(scope="module")
def parts() -> Parts:
    settings = load_settings("default")
    return Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)


@pytest.fixture(scope="module")
def shipped(parts: Parts) -> Router:
    return build_router(parts)


@pytest.fixture(scope="module")
def policy(parts: Parts, shipped: Router) -> Policy:
    return build_policy(shipped, parts.experts, parts.settings)


def simple(router: Router) -> Policy:
    return Policy(router.thresholds, TITLES)


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def heaviest(explanation: Explanation, name: str) -> str:
    return max(explanation.words, key=lambda word: word.weights[name]).text


# The shipped router


@pytest.mark.parametrize(
    ("question", "expert", "word"),
    [
        (FERRARI, "cars", "Ferrari"),
        ("Does melatonin help?", "sleep", "melatonin"),
        ("why did the edsel flop", "cars", "edsel"),
    ],
)
def test_the_heaviest_word_is_what_the_question_is_about(
    shipped: Router, policy: Policy, question: str, expert: str, word: str
) -> None:
    explanation = explain(shipped, policy, question)
    assert explanation.about == explanation.decision.experts == (expert,)
    assert heaviest(explanation, expert) == word


def test_taking_a_word_away_changes_the_score_by_what_is_claimed(shipped: Router, policy: Policy) -> None:
    explanation = explain(shipped, policy, FERRARI)
    before = shipped.score(FERRARI).experts["cars"]
    for word in explanation.words:
        after = shipped.score(without(FERRARI, word.text)).experts["cars"]
        assert log_odds(before) - log_odds(after) == pytest.approx(word.weights["cars"], abs=1e-3)
    assert max(word.weights["cars"] for word in explanation.words) > 3
    assert shipped.score("who founded?").experts["cars"] < before


def test_the_decision_is_the_one_that_is_made(shipped: Router, policy: Policy) -> None:
    for question, history in ((FERRARI, ()), (FOLLOW_UP, (REM,)), ("thanks", (REM,))):
        explanation = explain(shipped, policy, question, history)
        assert explanation.decision == policy.decide(shipped.score(question, history), shipped.name)
        assert explanation.thresholds == policy.thresholds


def test_a_courtesy_is_explained_as_nobodys(shipped: Router, policy: Policy) -> None:
    explanation = explain(shipped, policy, "thanks", [REM])
    assert explanation.decision.kind == "general"
    assert explanation.about == (GENERAL,)
    assert explanation.history == ()
    (word,) = explanation.words
    change = log_odds(shipped.score("thanks").none) - log_odds(shipped.score("").none)
    assert (word.text, word.weights) == ("thanks", {GENERAL: pytest.approx(change, abs=1e-3)})


def test_a_follow_up_is_explained_with_what_it_goes_on_with(shipped: Router, policy: Policy) -> None:
    history = ["Who built the first car?", "thanks", REM]
    explanation = explain(shipped, policy, FOLLOW_UP, history)
    assert explanation.history == tuple(history)
    assert explanation.about == ("sleep",)
    assert heaviest(explanation, "sleep") in {"REM", "sleep"}
    assert {word.turns_back for word in explanation.words} == {0, 1}, "it was not read with the other turns"
    for word in explanation.words:
        turn = (FOLLOW_UP, REM)[word.turns_back]
        assert turn[word.start : word.end] == word.text


def test_a_question_that_stands_alone_is_explained_alone(shipped: Router, policy: Policy) -> None:
    assert explain(shipped, policy, FERRARI, [REM]) == explain(shipped, policy, FERRARI)


def test_a_question_for_several_is_explained_for_each(shipped: Router, policy: Policy) -> None:
    question = "When was the Model T built, and how many hours should a teenager sleep?"
    explanation = explain(shipped, policy, question)
    assert set(explanation.about) == set(explanation.decision.experts) == {"cars", "sleep"}
    assert all(word.weights.keys() == {"cars", "sleep"} for word in explanation.words)
    assert heaviest(explanation, "sleep") == "sleep"
    for own, other, words in (("cars", "sleep", {"Model", "built"}), ("sleep", "cars", {"teenager", "sleep"})):
        of = [word.weights for word in explanation.words if word.text in words]
        assert sum(weights[own] for weights in of) > max(0, sum(weights[other] for weights in of))


# Any router


def test_the_lexical_router_can_be_explained_too() -> None:
    router = lexical_router()
    explanation = explain(router, simple(router), CARS_QUESTION, ["Hello"])
    assert (explanation.about, explanation.history) == (("cars",), ())
    assert heaviest(explanation, "cars") == "car"
    both = explain(router, simple(router), BOTH_QUESTION)
    assert heaviest(both, "sleep") == "sleep"
    assert heaviest(both, "cars") == "car"


def test_where_it_is_asked_back_the_words_speak_for_all_who_may_be_meant() -> None:
    router = FixedRouter(Scores({"sleep": 0.45, "cars": 0.42}, 0.44))
    explanation = explain(router, simple(router), "Why?")
    assert explanation.decision.kind == "clarify"
    assert explanation.about == explanation.decision.choices == ("sleep", GENERAL, "cars")
    assert explanation.words[0].weights == {"sleep": 0, GENERAL: 0, "cars": 0}


def test_scores_of_0_and_1_are_explained() -> None:
    router = FixedRouter(Scores({"sleep": 1.0, "cars": 0.0}, 0.0))
    assert explain(router, simple(router), "What is it?").words[0].weights == {"sleep": 0}


class WordCounter(FixedRouter):
    """The more often "sleep" is said, the surer it is; it reads all turns."""

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        self.asked.append((query, tuple(history)))
        said = " ".join([query, *history]).lower().count("sleep")
        return Scores({"sleep": 1 - 0.5 / (1 + said), "cars": 0.1}, 0.1)


def word_counter() -> WordCounter:
    return WordCounter(Scores({"sleep": 0.5, "cars": 0.1}, 0.1))


def test_a_word_said_twice_is_taken_away_everywhere_at_once() -> None:
    router = word_counter()
    explanation = explain(router, simple(router), "Sleep, why sleep?", ["I sleep", "Hm, hm"])
    weights = {(word.text, word.turns_back): word.weights["sleep"] for word in explanation.words}
    assert weights["Sleep", 0] == weights["sleep", 0] == pytest.approx(log_odds(0.875) - log_odds(0.5))
    assert weights["why", 0] == 0
    assert ("Hm", 1) not in weights, "a turn that changes nothing was not read"


def test_a_turn_of_which_nothing_is_left_is_left_out() -> None:
    router = word_counter()
    explain(router, simple(router), "And why?", ["Sleep!", "I see"])
    assert ("And why?", ("I see",)) in router.asked
    assert not any("" in history or "!" in history for _, history in router.asked)


def test_of_a_long_message_the_telling_words_are_tried_and_the_others_counted() -> None:
    router = word_counter()
    fillers = "what is the which and there are or you some with from for not how that can this by if"
    question = f"{fillers} " + " ".join(f"noun{n}" for n in range(MOST_WORDS - 5)) + " but sleep where it will"
    explanation = explain(router, simple(router), question)
    assert len(explanation.words) == MOST_WORDS
    assert len(router.asked) == MOST_WORDS + 1
    assert explanation.words_left_out == len(question.split()) - MOST_WORDS
    assert heaviest(explanation, "sleep") == "sleep"


def test_of_an_endless_message_nothing_is_tried_and_that_is_said() -> None:
    router = word_counter()
    explanation = explain(router, simple(router), "sleep and cars " * (MOST_READ // 14))
    assert (explanation.words, explanation.words_left_out, len(router.asked)) == ((), 3, 1)


@pytest.mark.parametrize("question", ["?!", "🙂", "..."])
def test_a_question_without_words_has_none_to_weigh(question: str) -> None:
    router = lexical_router()
    explanation = explain(router, simple(router), question)
    assert (explanation.words, explanation.words_left_out) == ((), 0)
    assert explanation.decision.reason


@pytest.mark.parametrize(
    ("text", "word", "rest"),
    [
        (FERRARI, "ferrari", "who founded?"),
        (FERRARI, "who", "founded Ferrari?"),
        ("Sleep: why do we sleep, and how?", "sleep", ": why do we, and how?"),
        ("a car, a carriage", "car", "a, a carriage"),
        ("don't do it", "do", "don't it"),
        ("the T-shirt and the T", "t", "the T-shirt and the"),
        ("one", "one", ""),
        ("was schläft länger", "SCHLÄFT", "was länger"),
    ],
)
def test_what_is_left_without_a_word_reads_as_if_it_had_never_been_there(text: str, word: str, rest: str) -> None:
    assert without(text, word) == rest
