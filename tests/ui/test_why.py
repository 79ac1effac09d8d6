from __future__ import annotations

from dataclasses import replace

import pytest

from expert_router.types import Decision, Explanation, NearestExample, Scores, Thresholds, WordWeight
from expert_router.ui.catalogue import Catalogue
from expert_router.ui.client import Failed, Routed
from expert_router.ui.conversation import Conversation, Exchange
from expert_router.ui.why import why

DECISION = Decision("single", ("sleep",), Scores({"sleep": 0.9, "cars": 0.1}, 0.05), "cars", "About sleep.")
EXCHANGE = Exchange("Why sleep?").after(Routed(DECISION, ("sleep",), {}))
EXPLANATION = Explanation(
    query="Why sleep?",
    history=(),
    decision=DECISION,
    thresholds=Thresholds(0.5, 0.35),
    about=("sleep",),
    words=(WordWeight("Why", 0, 3, 0, {"sleep": -0.04}), WordWeight("sleep", 4, 9, 0, {"sleep": 4.0})),
    nearest=(NearestExample("Do we sleep?", ("sleep",), 0.8),),
)


def shown(found: Explanation | Failed | None, *, askable: bool = True) -> str:
    return why(EXCHANGE, found, Catalogue(), askable=askable)


def test_before_it_was_asked_it_is_folded_and_asks() -> None:
    assert shown(None).startswith('<details class="er-why" data-ask><summary>Why?</summary>')
    assert shown(None, askable=False) == ""


def test_what_was_explained_is_open_and_does_not_ask_again() -> None:
    assert shown(EXPLANATION).startswith('<details class="er-why" open>')
    assert shown(EXPLANATION) == shown(EXPLANATION, askable=False)


@pytest.mark.parametrize("found", [replace(EXPLANATION, nearest=None), Failed("No.")])
def test_what_is_not_whole_asks_again_while_it_can(found: Explanation | Failed) -> None:
    assert "data-ask open" in shown(found)
    assert "data-ask" not in shown(found, askable=False)


def test_where_the_router_was_not_asked_there_is_nothing_to_explain() -> None:
    forced = Routed(Decision("forced", ("cars",), None, None, "You asked for it."), ("cars",), {})
    assert why(Exchange("Why?").after(forced), None, Catalogue(), askable=True) == ""
    assert why(Exchange("Why?"), None, Catalogue(), askable=True) == ""


def test_heavy_words_carry_their_weight_and_all_say_it_on_demand() -> None:
    page = shown(EXPLANATION)
    assert 'er-for" style="--share:1.00" title="+4.00">sleep<small>+4.0</small></span>?' in page
    assert 'er-against" style="--share:0.01" title="\N{MINUS SIGN}0.04">Why</span> ' in page


def test_words_that_hardly_matter_are_hardly_tinted() -> None:
    words = tuple(replace(word, weights={"sleep": 0.1}) for word in EXPLANATION.words)
    assert shown(replace(EXPLANATION, words=words)).count("--share:0.10") == 2


def test_what_was_not_tried_is_said() -> None:
    assert "7 different words were not tried" in shown(replace(EXPLANATION, words_left_out=7))
    assert "3 different words were not tried" in shown(replace(EXPLANATION, words=(), words_left_out=3))
    assert "not tried" not in shown(EXPLANATION)


def test_without_words_or_examples_their_parts_are_left_out() -> None:
    page = shown(replace(EXPLANATION, words=(), nearest=()))
    assert "The words" not in page
    assert "nearest" not in page
    assert "The scores" in page


def test_an_exchange_knows_what_the_person_had_said_by_then() -> None:
    answered = Conversation().ask("one", "auto")
    answered = answered.with_last(replace(EXCHANGE, question="one", parts=()))
    unanswered = answered.ask("two", "auto")
    assert unanswered.user_turns(0) == ("one",)
    assert unanswered.user_turns(1) == ("two",), "what was never answered is not sent"
