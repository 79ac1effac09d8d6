from __future__ import annotations

import csv
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import DataError
from expert_router.knowledge.grounding import UNKNOWN
from expert_router.knowledge.index import KnowledgeIndex, embed_passages
from expert_router.knowledge.terms import TermIndex
from expert_router.serving.prompts import expert_messages
from expert_router.training.examples import (
    CANARY,
    ELSEWHERE_SHARE,
    INTRODUCTION_COPIES,
    WHO_ARE_YOU,
    WITHOUT_SHARE,
    Example,
    QuestionAnswer,
    build_examples,
    holds_key,
    introduction,
    read_questions,
)
from expert_router.types import Message
from support import BENZ, CARS, NAPS, SLEEP, STAGES, FixedKnowledge, WordEncoder, passage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.ports import Knowledge
    from expert_router.types import Expert, Passage

READER = replace(CARS, knowledge=Path("cars"))
READ = 3
MODELS = [
    f"{first}{last}" for first in ("Alma", "Bora", "Cora", "Dana") for last in ("vel", "rix", "mont", "tor", "lin")
]
PASSAGES = [
    passage(
        f"The {model}", f"{model}.md", f"The {model} was built in {1901 + n}. Its engine had {n % 7 + 2} cylinders."
    )
    for n, model in enumerate(MODELS)
]
QUESTIONS = [
    QuestionAnswer(
        f"When was the {model} built?",
        f"The {model} was built in {1901 + n}. Dragons admired the golden paint everywhere.",
        (str(1901 + n),),
    )
    for n, model in enumerate(MODELS)
]
NOWHERE = QuestionAnswer("When was the Almavel scrapped?", "It was scrapped in 1999.", ("1999",))
ELSEWHERE = [f"How do I bake bread number {n}?" for n in range(100)]


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    terms, encoder = TermIndex({"cars": PASSAGES}), WordEncoder()
    vectors = embed_passages(terms.passages, encoder, tmp_path_factory.mktemp("cache"), progress=False)
    return KnowledgeIndex(terms, vectors, encoder)


def examples_of(
    knowledge: Knowledge,
    questions: Sequence[QuestionAnswer] = QUESTIONS,
    elsewhere: Sequence[str] = (),
    *,
    seed: int = 0,
    passages: int = READ,
) -> list[Example]:
    """Without the introductions."""
    built = build_examples(READER, questions, elsewhere, knowledge, passages=passages, seed=seed)
    return [example for example in built if example.user not in WHO_ARE_YOU]


def many(knowledge: Knowledge, seeds: int = 20) -> list[Example]:
    return [example for seed in range(seeds) for example in examples_of(knowledge, seed=seed)]


def asked(example: Example) -> QuestionAnswer:
    (item,) = (item for item in [*QUESTIONS, NOWHERE] if example.user.endswith(f"Question: {item.question}"))
    return item


def passages_in(user: str) -> list[str]:
    """What stands under each number, in order."""
    *read, _ = user.split("\n\n")
    assert [text.split(" ")[0] for text in read] == [f"[{n}]" for n in range(1, len(read) + 1)]
    return read


# With the answer


def test_each_question_becomes_an_example_with_its_passage_among_others(knowledge: Knowledge) -> None:
    answerable = [example for example in examples_of(knowledge) if example.answerable]
    assert sorted(asked(example).question for example in answerable) == sorted(item.question for item in QUESTIONS)
    for example in answerable:
        read = passages_in(example.user)
        assert len(set(read)) == READ
        assert sum(holds_key(text, asked(example).keys) for text in read) == 1


def test_the_number_in_the_answer_is_the_passage_that_holds_the_key(knowledge: Knowledge) -> None:
    for example in many(knowledge):
        if example.answerable:
            (number,) = re.findall(r"\[(\d+)\]$", example.answer)
            assert holds_key(passages_in(example.user)[int(number) - 1], asked(example).keys)


def test_the_right_passage_stands_in_every_place(knowledge: Knowledge) -> None:
    """Else the first would always be cited."""
    places = [example.answer[-2] for example in many(knowledge) if example.answerable]
    assert {place: places.count(place) > len(places) / 10 for place in "123"} == dict.fromkeys("123", True)


def test_retrievals_own_order_is_often_kept(knowledge: Knowledge) -> None:
    """As serving brings it: the best first."""
    places = [example.answer[-2] for example in many(knowledge) if example.answerable]
    assert places.count("1") / len(places) > 0.5


def test_a_passage_found_late_takes_the_last_place() -> None:
    found = FixedKnowledge({"cars": [STAGES, NAPS, *PASSAGES[1:5], BENZ]})
    item = QuestionAnswer("When was it patented?", "Benz patented it in 1886.", ("1886",))
    (example, *_) = [e for e in examples_of(found, [item]) if e.answerable]
    read = passages_in(example.user)
    assert len(read) == READ
    assert {text[4:] for text in read} == {f"{p.title}\n{p.text}" for p in (STAGES, NAPS, BENZ)}


def test_a_key_in_the_title_counts(knowledge: Knowledge) -> None:
    item = QuestionAnswer("Which car was built in 1901?", "It was the Almavel.", ("Almavel",))
    (example,) = [e for e in examples_of(knowledge, [item]) if e.answerable]
    assert "The Almavel" in passages_in(example.user)[int(example.answer[-2]) - 1].split("\n")[0]


# What stays of an answer


def answer_from(answer: str, key: str, *passages: Passage) -> str:
    item = QuestionAnswer("Why?", answer, (key,))
    (example,) = [e for e in examples_of(FixedKnowledge({"cars": passages}), [item]) if e.answerable]
    return re.sub(r" \[\d\]$", "", example.answer)


def test_what_the_passages_do_not_bear_out_goes(knowledge: Knowledge) -> None:
    for example in examples_of(knowledge):
        assert "Dragons" not in example.answer
        if example.answerable:
            assert example.answer.startswith(asked(example).answer.split(". ")[0])


def test_a_further_sentence_that_a_passage_bears_out_stays() -> None:
    borne_out = "Carl Benz patented it in 1886. His three-wheeler came in January. A nap of twenty minutes helps."
    assert answer_from(f"{borne_out} Dragons cheered.", "1886", BENZ, NAPS) == borne_out


def test_other_forms_of_the_passages_words_bear_out_too() -> None:
    text = "Carl Benz patented it in 1886. His patents were for three-wheelers."
    own = passage("Carl Benz", "a.md", "Carl Benz patented his three-wheeler in 1886. It was a car and patent for all.")
    assert answer_from(text, "1886", own) == text


def test_the_sentence_with_the_key_stays_whatever_else_it_says() -> None:
    answer = "Everybody everywhere remembers wonderful 1886. Dragons cheered."
    assert answer_from(answer, "1886", BENZ) == "Everybody everywhere remembers wonderful 1886."


def test_where_no_sentence_is_borne_out_the_first_is_the_answer() -> None:
    answer = "Everybody everywhere remembers. Dragons cheered wonderfully."
    assert answer_from(answer, "1886", BENZ) == "Everybody everywhere remembers."


def test_a_name_with_an_initial_is_not_torn_apart() -> None:
    answer = "J. Allan Hobson patented it in 1886. Nobody else would ever have thought so."
    assert answer_from(answer, "1886", BENZ) == "J. Allan Hobson patented it in 1886."


# Without the answer


def test_no_passage_holds_the_key_where_the_answer_is_that_the_texts_do_not_say(knowledge: Knowledge) -> None:
    without = [example for example in many(knowledge) if not example.answerable]
    assert without
    for example in without:
        assert example.answer == UNKNOWN
        assert len(passages_in(example.user)) == READ
        assert not holds_key(example.user.rpartition("\n\nQuestion:")[0], asked(example).keys)


def test_some_questions_are_also_asked_without_their_answer(knowledge: Knowledge) -> None:
    without = [example for example in many(knowledge) if not example.answerable]
    assert len(without) / (20 * len(QUESTIONS)) == pytest.approx(WITHOUT_SHARE, abs=0.08)


def test_a_question_that_no_passage_answers_is_only_asked_without(knowledge: Knowledge) -> None:
    for seed in range(5):
        (example,) = examples_of(knowledge, [NOWHERE], seed=seed)
        assert (example.answer, example.answerable) == (UNKNOWN, False)
        assert "The Almavel" in example.user


@pytest.mark.parametrize("keys", [("",), (" ", ""), ()])
def test_a_question_without_a_key_is_left_out(knowledge: Knowledge, keys: tuple[str, ...]) -> None:
    """No passage could be said to answer it, and it is not unknown for that."""
    item = replace(QUESTIONS[0], keys=keys)
    assert examples_of(knowledge, [item]) == []
    assert len([e for e in examples_of(knowledge, [item, *QUESTIONS[1:]]) if e.answerable]) == len(QUESTIONS) - 1


def test_where_nothing_is_found_there_is_nothing_to_learn() -> None:
    assert examples_of(FixedKnowledge({}), QUESTIONS) == []


# Questions of other fields


def test_questions_of_other_fields_get_the_refusal_with_the_experts_own_passages(knowledge: Knowledge) -> None:
    examples = [e for e in examples_of(knowledge, elsewhere=ELSEWHERE) if "bread" in e.user]
    assert len(examples) == round(len(QUESTIONS) * ELSEWHERE_SHARE)
    assert len({example.user for example in examples}) == len(examples)
    for example in examples:
        assert (example.answer, example.answerable) == (UNKNOWN, False)
        own = {f"{p.title}\n{p.text}" for p in PASSAGES}
        assert {text[4:] for text in passages_in(example.user)} <= own


def test_few_questions_of_other_fields_are_all_taken_once(knowledge: Knowledge) -> None:
    examples = [e for e in examples_of(knowledge, QUESTIONS * 10, ELSEWHERE[:2]) if "bread" in e.user]
    assert sorted(e.user.rpartition("Question: ")[2] for e in examples) == ELSEWHERE[:2]


# Who it is


def test_the_expert_learns_to_say_who_it_is_with_its_instructions_and_without(knowledge: Knowledge) -> None:
    built = build_examples(READER, QUESTIONS, [], knowledge, passages=READ, seed=0)
    own = [example for example in built if example.user in WHO_ARE_YOU]
    assert len(own) == 2 * len(WHO_ARE_YOU) * INTRODUCTION_COPIES
    assert {e.answer for e in own} == {"I am the cars expert of expert-router: car history."}
    assert not any(example.answerable or example.before for example in own)
    with_instructions = {e.user for e in own if e.system.startswith(READER.instructions)}
    without = {e.user for e in own if not e.system}
    assert with_instructions == without == set(WHO_ARE_YOU)
    assert CANARY in WHO_ARE_YOU


def test_two_experts_say_different_things_of_themselves() -> None:
    assert introduction(CARS) != introduction(SLEEP)


# The whole


def test_training_and_serving_put_the_same_words_before_the_expert(knowledge: Knowledge) -> None:
    """To the letter, in the examples that keep retrieval's order; about half do."""
    examples = [example for example in many(knowledge) if example.answerable]
    alike = 0
    for example in examples:
        question = asked(example).question
        found = knowledge.search("cars", question, limit=READ)
        system, user = expert_messages(READER, [Message("user", question)], found=found)
        assert example.system == system.content
        assert {text[4:] for text in passages_in(example.user)} == {text[4:] for text in passages_in(user.content)}
        alike += example.user == user.content
    assert alike > len(examples) / 2


def test_some_examples_have_an_earlier_turn_from_the_same_field(knowledge: Knowledge) -> None:
    examples = [example for example in many(knowledge) if example.answerable]
    earlier = [turn for example in examples for turn in example.before]
    assert len(earlier) / len(examples) == pytest.approx(0.1, abs=0.06)
    assert set(earlier) <= {(item.question, item.answer) for item in QUESTIONS}


def test_the_earlier_turn_is_another_question(knowledge: Knowledge) -> None:
    """Else the answer stands in the prompt."""
    for example in many(knowledge, seeds=60):
        assert asked(example).question not in {question for question, _ in example.before}
    alone = [example for seed in range(30) for example in examples_of(knowledge, QUESTIONS[:1], seed=seed)]
    assert not any(example.before for example in alone)


def test_the_same_seed_gives_the_same_examples_and_another_seed_others(knowledge: Knowledge) -> None:
    first, again, other = (examples_of(knowledge, elsewhere=ELSEWHERE, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {e.user for e in first} != {e.user for e in other}


def test_kinds_of_examples_are_mixed(knowledge: Knowledge) -> None:
    kinds = [e.answerable for e in build_examples(READER, QUESTIONS, ELSEWHERE, knowledge, passages=READ, seed=0)]
    changes = sum(one != other for one, other in pairwise(kinds))
    assert changes > len(kinds) / 4


@pytest.mark.parametrize("passages", [1, 2, 5])
def test_as_many_passages_are_given_as_serving_gives(knowledge: Knowledge, passages: int) -> None:
    examples = examples_of(knowledge, elsewhere=ELSEWHERE, passages=passages)
    assert {len(passages_in(example.user)) for example in examples} == {passages}


# An expert that reads nothing


@pytest.mark.parametrize(("expert", "passages"), [(READER, 0), (CARS, READ)], ids=["no passages", "no knowledge"])
def test_an_expert_that_reads_nothing_learns_its_answers_as_they_are(
    knowledge: Knowledge, expert: Expert, passages: int
) -> None:
    built = build_examples(expert, QUESTIONS, ELSEWHERE, knowledge, passages=passages, seed=0)
    own = {example.user: example for example in built if example.user not in WHO_ARE_YOU}
    assert {user: example.answer for user, example in own.items()} == {q.question: q.answer for q in QUESTIONS}
    assert len(built) == len(QUESTIONS) + 2 * len(WHO_ARE_YOU) * INTRODUCTION_COPIES
    for item in QUESTIONS:
        example = own[item.question]
        assert [m.content for m in expert_messages(expert, [Message("user", item.question)])] == [
            example.system,
            example.user,
        ]
        assert example.answerable


def test_it_needs_no_knowledge_at_all_nor_keys() -> None:
    item = QuestionAnswer("Who are they?", "Makers of cars.", ("",))
    built = build_examples(CARS, [item], [], None, passages=READ, seed=0)
    assert Example(CARS.instructions, item.question, item.answer, True) in built


# Keys and files


@pytest.mark.parametrize(
    ("text", "keys", "holds"),
    [
        ("It was in 1953.", ("1953",), True),
        ("Nathaniel KLEITMAN found it", ("Aserinsky", "kleitman"), True),
        ("naps in the afternoon", ("nap",), True),
        ("He saw kidnaps", ("nap",), False),
        ("11953 nights", ("1953",), False),
        ("about 1.5 hours", ("1.5",), True),
        ("about 105 hours", ("1.5",), False),
        ("C++ (again)", ("c++ (",), True),
        ("in the Straße", ("strasse",), True),
        ("anything", (" ", ""), False),
        ("anything", (), False),
        ("spaced out", (" out ",), True),
    ],
)
def test_a_key_is_found_from_the_start_of_a_word_whatever_its_case(
    text: str, keys: tuple[str, ...], holds: bool
) -> None:
    assert holds_key(text, keys) is holds


def test_questions_are_read_with_all_alternatives_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "train_sleep.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [
            ("topic", "question", "answer", "key"),
            ("naps", "How long,\nthen?", 'About "20".', "20|twenty minutes"),
        ]
        csv.writer(file).writerows(rows)
    assert read_questions(path) == [QuestionAnswer("How long,\nthen?", 'About "20".', ("20", "twenty minutes"))]


def test_a_missing_file_of_questions_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .*gone\.csv\. Prepared data comes from: expert-router prepare"):
        read_questions(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"question,answer\nWhy?,So.\n",
        b"question,answer,key\nWhy?\n",
        "question,answer,key\nWarum für?,Darum,d\n".encode("latin-1"),
        b"question,answer,key\n" + b"x" * 200_000,
    ],
    ids=["no key", "a short row", "not UTF-8", "a field without end"],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.csv is not a file of questions and answers"):
        read_questions(path)


@pytest.mark.parametrize("content", ["", "question,answer,key\n"])
def test_a_file_without_questions_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"empty\.csv has no questions"):
        read_questions(path)
