from __future__ import annotations

import pytest

from expert_router.knowledge.grounding import (
    RULES,
    UNKNOWN,
    cited,
    grounded_question,
    is_unknown,
    without_citations,
)
from expert_router.types import Found
from support import BENZ, NAPS, STAGES

FOUND = [Found(STAGES, 1.0), Found(NAPS, 0.8), Found(BENZ, 0.5)]
FIRST, SECOND, THIRD = FOUND


def test_passages_stand_numbered_from_one_before_the_question() -> None:
    assert grounded_question("How long should I nap?", [STAGES, NAPS]) == (
        "[1] REM sleep: what happens\nThe eyes dart about under closed lids.\n\n"
        "[2] Naps\nA nap of twenty minutes helps for hours.\n\n"
        "Question: How long should I nap?"
    )


def test_without_passages_the_question_stands_alone() -> None:
    assert grounded_question("Why?", []) == "Question: Why?"


def test_the_question_is_kept_to_the_letter() -> None:
    question = ' \n{why} "[2]"  %s '
    assert grounded_question(question, [NAPS]).endswith(f"Question: {question}")


@pytest.mark.parametrize(
    ("answer", "passages"),
    [
        ("Twenty minutes [2].", [SECOND]),
        ("So says [3], as does [1].", [THIRD, FIRST]),
        ("Twice [1] the same [1].", [FIRST]),
        ("Both[1][2]", [FIRST, SECOND]),
        ("Nothing is named.", []),
        ("There is no such passage [4] [0] [99].", []),
        ("Neither a year [1953] nor a word [sic] is one; (2) is none either.", []),
    ],
)
def test_an_answer_cites_the_passages_it_names_in_its_order_and_once(answer: str, passages: list[Found]) -> None:
    assert cited(answer, FOUND) == passages


def test_when_nothing_was_found_nothing_is_cited() -> None:
    assert cited("As [1] says.", []) == []


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Twenty minutes [2].", "Twenty minutes."),
        ("Both [1][2] say so [12].", "Both say so."),
        ("[1] says so.", " says so."),
        ("In [1953] or [sic].", "In [1953] or [sic]."),
        ("", ""),
    ],
)
def test_numbers_of_passages_are_taken_out_with_the_space_before_them(answer: str, plain: str) -> None:
    assert without_citations(answer) == plain


@pytest.mark.parametrize(
    "answer",
    [
        UNKNOWN,
        f"  {UNKNOWN}\n",
        UNKNOWN.upper(),
        "I don't know.",
        "I don\N{RIGHT SINGLE QUOTATION MARK}t know.",
        "I do not know that.",
    ],
)
def test_saying_that_one_does_not_know_is_recognised(answer: str) -> None:
    assert is_unknown(answer)


@pytest.mark.parametrize("answer", ["", "It is known [1].", "Doctors say: I don't know.", "I know: in 1953 [1]."])
def test_an_answer_is_not_taken_for_not_knowing(answer: str) -> None:
    assert not is_unknown(answer)


def test_the_rules_hold_the_very_words_for_not_knowing_and_an_example_that_counts_as_a_citation() -> None:
    assert f'"{UNKNOWN}"' in RULES
    assert cited(RULES, FOUND) == [FIRST]
