"""What is normalised, what is refused, and which questions count as the same."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from expert_router.data.clean import (
    LONGEST,
    Record,
    Wording,
    normalise,
    normalise_key,
    problem_with,
    words_of,
)
from expert_router.data.prepare import clean
from expert_router.data.similar import SIMILAR_WORDS, similar_pairs

EXPERTS = ("cars", "sleep")


def row(line: int, question: str, *experts: str, file: str = "x.csv", decides: bool = False) -> Record:
    return Record(file, line, question, file.removesuffix(".csv"), question, experts, decides=decides)


def answered(line: int, question: str, key: str, expert: str = "cars", answer: str | None = None) -> Record:
    return replace(row(line, question, expert), answer=answer or f"It is {key}.", key=key, answered=True)


def kept(records: list[Record]) -> list[int]:
    return [record.line for record in clean(records).records]


# Normalising


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  What   is\tREM\r\nsleep ? ", "What is REM sleep ?"),
        ("Citroe\u0308n", "Citroën"),
        ("non\u00a0breaking and\u2003wide", "non breaking and wide"),
        ("zero\u200bwidth, soft\u00adhyphen, \ufeffmark, \x07bell", "zerowidth, softhyphen, mark, bell"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("narcolepsey WHY", "narcolepsey WHY"),
        ("👩\u200d🔧 mechanics", "👩\u200d🔧 mechanics"),
    ],
)
def test_normalise_keeps_case_and_spelling(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


def test_answers_keep_their_lines() -> None:
    assert (
        normalise(" One:\r\n\n\n\n  two \t three \n- four\x0bfive ", keep_lines=True)
        == "One:\n\ntwo three\n- four\nfive"
    )


def test_key_loses_empty_alternatives() -> None:
    assert normalise_key(" Karl  Benz| |Carl Benz|") == "Karl Benz|Carl Benz"


# Checking


def test_usable_record_has_no_problem() -> None:
    record = answered(1, "Who built it?", "Carl Benz|karl benz", answer="KARL BENZ built it.")
    assert problem_with(record, EXPERTS) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": ""}, "the question is empty"),
        ({"answer": "", "key": ""}, "the answer and the key are empty"),
        ({"key": "1909|1910"}, "no alternative of the key '1909|1910' occurs in the answer"),
        ({"question": "?! 😴"}, "the question has no letter or digit"),
        ({"question": "x" * (LONGEST["question"] + 1)}, "the question has 2,001 characters, more than 2,000"),
        ({"trap": "dogs"}, "there is no expert 'dogs'; known: cars, sleep"),
        ({"experts": ("cars", "cats")}, "there is no expert 'cats'; known: cars, sleep"),
        ({"experts": (), "decides": True}, "no expert is named"),
    ],
)
def test_problems_are_named(changes: dict[str, object], reason: str) -> None:
    assert problem_with(replace(answered(1, "When?", "1908"), **changes), EXPERTS) == reason


@pytest.mark.parametrize(
    ("key", "answer"), [("Citroën", "citroe\u0308n did"), ("driver's seat", "The driver\u2019s seat.")]
)
def test_key_is_found_whatever_its_typography(key: str, answer: str) -> None:
    assert problem_with(answered(1, "Who?", key, answer=answer), EXPERTS) is None


# The same question


@pytest.mark.parametrize(
    "other",
    [
        "what is rem sleep",
        "What is REM-sleep?!",
        "WHAT IS RÉM SLEEP",
        "What is the REM sleep?",
        "Please explain REM sleep.",
        "what are rem sleeps",
    ],
)
def test_same_question_in_other_words_is_removed(other: str) -> None:
    result = clean([answered(1, "What is REM sleep?", "dreams"), answered(2, other, "dreams")])
    assert [record.line for record in result.records] == [1]
    assert [(d.record.line, d.kept.line) for d in result.duplicates] == [(2, 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who invented the three-point seat belt?", "who invented three point seatbelts"),
        ("When did Ford introduce the Model T?", "When was the Ford Model T introduced?"),
        ("treatment of narcolepsy in adults", "treatment of narcolepsey in adults"),
    ],
)
def test_compounds_order_and_misspellings(one: str, other: str) -> None:
    assert kept([answered(1, one, "x"), answered(2, other, "x")]) == [1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("When was the Ford Model T introduced", "When was the Ford Model A introduced"),
        ("Who won the 1955 Le Mans race?", "Who won the 1956 Le Mans race?"),
        ("Who built the first car?", "When was the first car built?"),
        ("What happens in stage N2 of sleep?", "What happens in stage N3 of sleep?"),
        ("Is sleep better with coffee?", "Is sleep better without coffee?"),
        ("How fast was the 1.8 litre engine?", "How fast was the 18 litre engine?"),
        ("who is lando norris", "who is lando morris"),
        ("Does memory affect learning?", "Does learning affect memory?"),
    ],
)
def test_different_facts_in_similar_words_stay(one: str, other: str) -> None:
    assert kept([row(1, one, "cars"), row(2, other, "cars")]) == [1, 2]


def test_same_wording_with_another_key_stays() -> None:
    records = [answered(1, "Who founded Rolls-Royce?", "Rolls"), answered(2, "Who founded the Rolls Royces?", "Royce")]
    assert kept(records) == [1, 2]


def test_equal_question_with_a_contrary_key_is_rejected() -> None:
    result = clean([answered(1, "When did it start?", "1908"), answered(2, "when did it start", "1909")])
    assert [record.line for record in result.records] == [1]
    assert [(r.line, r.reason) for r in result.rejected] == [
        (2, "the same question has another key, '1908', at x.csv:1")
    ]


def test_keys_agree_when_each_occurs_in_the_other_answer() -> None:
    records = [
        answered(1, "Who built it?", "Benz", answer="Carl Benz, in Mannheim."),
        answered(2, "who built it", "Mannheim", answer="Benz of Mannheim."),
    ]
    assert kept(records) == [1]
    assert clean(records).rejected == ()


def test_a_chain_of_duplicates_ends_at_a_kept_record() -> None:
    result = clean([row(n, q) for n, q in enumerate(["REM sleep", "what is REM sleep", "explain the REM sleep"], 1)])
    assert [d.kept.line for d in result.duplicates] == [1, 1]


def test_same_question_under_two_labels_is_a_conflict_of_both() -> None:
    result = clean([row(1, "Is jaguar fast?", "cars"), row(2, "is jaguar fast"), row(3, "Something else")])
    assert [record.line for record in result.records] == [3]
    assert [(r.line, r.reason) for r in result.rejected] == [
        (1, "conflict: the same question is labelled cars here and none at x.csv:2"),
        (2, "conflict: the same question is labelled none here and cars at x.csv:1"),
    ]


def test_the_file_that_decides_wins_a_conflict() -> None:
    question = "How do sleepy drivers shape car design?"
    both = row(9, question, "sleep", "cars", file="multi_topic.csv", decides=True)
    result = clean([row(1, question, "cars"), both, replace(both, line=10)])
    assert [record.line for record in result.records] == [9]
    assert [d.record.line for d in result.duplicates] == [10]
    assert [r.reason for r in result.rejected] == [
        "conflict: the same question is labelled cars here and sleep|cars at multi_topic.csv:9"
    ]


def test_order_of_the_named_experts_is_no_conflict() -> None:
    result = clean([row(1, "both of it", "sleep", "cars"), row(2, "both of it", "cars", "sleep")])
    assert result.rejected == ()
    assert len(result.duplicates) == 1


def test_similar_questions_with_different_labels_stay_and_are_paired() -> None:
    result = clean([row(1, "What is a jaguar?", "cars"), row(2, "what is the jaguar")])
    assert len(result.records) == 2
    assert [(p.first, p.second, p.same_wording) for p in result.pairs] == [(0, 1, True)]


def test_pairs_count_from_the_records_that_stay() -> None:
    questions = ["an apple pie", "the apple pie", "When was the Model T made", "unrelated", "When was the Model A made"]
    result = clean([row(n, q) for n, q in enumerate(questions)])
    (pair,) = result.pairs
    assert [result.records[i].question for i in pair[:2]] == [questions[2], questions[4]]


def test_nothing_comes_of_nothing() -> None:
    assert clean([]) == clean(())
    assert clean([row(1, "alone")]).pairs == ()


# Similarity


def word_jaccard(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    return len({*a} & {*b}) / len({*a} | {*b})


def variations(count: int, seed: int) -> list[tuple[str, ...]]:
    """Questions of which some differ in one or two of their words."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(2_000)]
    questions = []
    for _ in range(count // 2):
        words = rng.choices(vocabulary, k=rng.randint(4, 14))
        questions.append(tuple(words))
        changed = list(words)
        for _ in range(rng.randint(1, 2)):
            changed[rng.randrange(len(changed))] = rng.choice(vocabulary)
        questions.append(tuple(changed))
    return questions


def test_similar_pairs_are_those_an_exact_comparison_finds() -> None:
    questions = variations(600, seed=3)
    found = {(p.first, p.second) for p in similar_pairs(questions)}
    expected = {
        (i, j)
        for (i, a), (j, b) in itertools.combinations(enumerate(questions), 2)
        if word_jaccard(a, b) >= SIMILAR_WORDS
    }
    assert len(expected) > 100
    assert expected <= found


def test_similarity_does_not_depend_on_the_other_questions() -> None:
    few, many = variations(60, seed=1), variations(60, seed=1) + variations(200, seed=2)
    assert similar_pairs(few) == [p for p in similar_pairs(many) if p.second < len(few)]


def test_words_of_keeps_numbers_and_names_whole() -> None:
    assert words_of("Ford\u2019s 1.8 T, C++ and 190E \u2013 Citroën") == (
        "fords",
        "1.8",
        "t",
        "c++",
        "and",
        "190e",
        "citroen",
    )


def test_wording_of_filler_alone_is_compared_by_its_filler() -> None:
    assert not Wording.of(words_of("what is it")).is_same(Wording.of(words_of("who am i")))
    assert not Wording.of(words_of("what is this")).is_same(Wording.of(words_of("can you do that")))
