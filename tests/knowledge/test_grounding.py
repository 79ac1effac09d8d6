from __future__ import annotations

from math import inf

import pytest

from expert_router.knowledge.grounding import (
    RULES,
    UNKNOWN,
    cited,
    grounded_question,
    is_unknown,
    texts_read,
    without_citations,
    worth_reading,
)
from expert_router.types import Found
from support import BENZ, NAPS, STAGES, passage

FOUND = [Found(STAGES, 1.0), Found(NAPS, 0.8), Found(BENZ, 0.5)]
FIRST, SECOND, THIRD = FOUND
BEDS = passage("Beds", "beds.md", "Feathers were a luxury. Springs came from coils. Straw drew the fleas.")
SPRINGS = "Springs came from coils."


@pytest.mark.parametrize(
    ("scores", "margin", "read"),
    [
        ([], 0.1, 0),
        ([1.0], 0.1, 1),
        ([1.0, 0.2], 0.1, 2),
        ([1.0, 0.2, 0.19], 0.1, 2),
        ([1.0, 0.95, 0.92, 0.5], 0.1, 3),
        ([1.0, 0.5, 0.5, 0.5, 0.1], 0.5, 4),
        ([1.0, 0.5, 0.1], inf, 3),
        ([1.0, 1.0, 1.0], 0.0, 3),
    ],
)
def test_the_best_two_are_read_and_what_matches_nearly_as_well_as_the_best(
    scores: list[float], margin: float, read: int
) -> None:
    found = [Found(NAPS, score) for score in scores]
    assert worth_reading(found, margin) == found[:read]


def test_passages_stand_numbered_from_one_between_the_question_and_the_question_again() -> None:
    assert grounded_question("How long should I nap?", [FIRST, SECOND]) == (
        "Question: How long should I nap?\n\n"
        "[1] REM sleep: what happens\nThe eyes dart about under closed lids.\n\n"
        "[2] Naps\nA nap of twenty minutes helps for hours.\n\n"
        "Question: How long should I nap?"
    )


def test_the_first_passage_is_read_whole_and_of_the_others_the_excerpt_under_the_title() -> None:
    beds, naps = Found(BEDS, 1.0, SPRINGS), Found(NAPS, 0.8, "A nap helps.")
    assert texts_read([beds, naps]) == [f"Beds\n{BEDS.text}", "Naps\nA nap helps."]
    assert texts_read([naps, FIRST, beds]) == [
        f"Naps\n{NAPS.text}",
        f"{STAGES.title}\n{STAGES.text}",
        f"Beds\n{SPRINGS}",
    ]


def test_the_place_decides_what_is_read_whole_and_not_the_score() -> None:
    better, worse = Found(BEDS, 1.2, SPRINGS), Found(BEDS, 0.1, SPRINGS)
    assert texts_read([worse, better]) == texts_read([better, worse]) == [f"Beds\n{BEDS.text}", f"Beds\n{SPRINGS}"]


def test_a_passage_without_an_excerpt_is_read_whole_in_every_place() -> None:
    assert texts_read(FOUND) == [f"{p.title}\n{p.text}" for p in (STAGES, NAPS, BENZ)]


def test_the_expert_is_asked_with_what_is_read_and_nothing_else() -> None:
    assert grounded_question("What were beds of?", [SECOND, Found(BEDS, 0.5, SPRINGS)]) == (
        "Question: What were beds of?\n\n"
        "[1] Naps\nA nap of twenty minutes helps for hours.\n\n"
        "[2] Beds\nSprings came from coils.\n\n"
        "Question: What were beds of?"
    )


def test_without_passages_the_question_stands_alone() -> None:
    assert texts_read([]) == []
    assert grounded_question("Why?", []) == "Question: Why?"


def test_the_question_is_kept_to_the_letter() -> None:
    question = ' \n{why} "[2]"  %s '
    first, last = f"Question: {question}\n\n", f"\n\nQuestion: {question}"
    assert grounded_question(question, [SECOND]) == f"{first}[1] {NAPS.title}\n{NAPS.text}{last}"


@pytest.mark.parametrize(
    ("answer", "passages"),
    [
        ("[2] Twenty minutes.", [SECOND]),
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
        ("[2] Twenty minutes.", "Twenty minutes."),
        ("[1][3] Both say so.", "Both say so."),
        (" [1]\nTwenty minutes. ", "Twenty minutes. "),
        ("In [1953] or [sic].", "In [1953] or [sic]."),
        ("", ""),
    ],
)
def test_numbers_of_passages_are_taken_out_with_the_space_around_them(answer: str, plain: str) -> None:
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
