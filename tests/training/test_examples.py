from __future__ import annotations

import csv
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import DataError
from expert_router.knowledge.grounding import UNKNOWN, grounded_question
from expert_router.knowledge.index import KnowledgeIndex, embed_passages
from expert_router.knowledge.terms import TermIndex
from expert_router.serving.prompts import expert_messages
from expert_router.training.examples import (
    CANARY,
    CANARY_QUESTIONS,
    ELSEWHERE_SHARE,
    INTRODUCTION_COPIES,
    LEAD_WORDS,
    QUOTED_WORDS,
    SHUFFLED_SHARE,
    WHO_ARE_YOU,
    WITHOUT_SHARE,
    Example,
    QuestionAnswer,
    build_examples,
    canary_prompts,
    holds_key,
    introduction,
    read_questions,
    read_reading,
)
from expert_router.types import Found, Message
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
        f"The {model}",
        f"{model}.md",
        f"The {model} was built in {1901 + n}. Its engine had {n % 7 + 2} cylinders. "
        "Grey paint covered it. Few people bought one.",
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


# What holds the answer of SPEED says it far from what sounds like the question; another passage is all sound.
ZEPHYR = passage(
    "The Zephyr",
    "zephyr.md",
    "The Zephyr was a very fast car. How fast the Zephyr was, people asked. A stopwatch said 97 miles an hour.",
)
RUMOURS = passage(
    "How fast?", "rumours.md", "How fast was the Zephyr car, people asked. The Zephyr was fast, people said."
)
SPEED = QuestionAnswer("How fast was the Zephyr car?", "A stopwatch said 97 miles an hour.", ("97",))


def make_index(cache: Path, *passages: Passage) -> KnowledgeIndex:
    terms, encoder = TermIndex({"cars": passages}), WordEncoder()
    return KnowledgeIndex(terms, embed_passages(terms.passages, encoder, cache, progress=False), encoder)


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return make_index(tmp_path_factory.mktemp("cache"), *PASSAGES)


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


def question_in(user: str) -> str:
    """What is asked in front of the passages and, in the same words, after them."""
    first, *_, last = user.split("\n\n")
    assert first == last
    assert first.startswith("Question: ")
    return first.removeprefix("Question: ")


def asked(example: Example) -> QuestionAnswer:
    (item,) = (item for item in [*QUESTIONS, NOWHERE] if item.question == question_in(example.user))
    return item


def passages_in(user: str) -> list[str]:
    """What stands at each number, in order: all that is between the question and the question again."""
    assert question_in(user)
    _, *read, _ = user.split("\n\n")
    assert [text.split(" ")[0] for text in read] == [f"[{n}]" for n in range(1, len(read) + 1)]
    return read


def number_in(example: Example) -> int:
    """The passage that the answer begins with."""
    return int(re.findall(r"^\[(\d+)\] \S", example.answer)[0])


def titles_in(user: str) -> set[str]:
    return {text[4:].split("\n")[0] for text in passages_in(user)}


def whole(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}"


# With the answer


def test_each_question_becomes_an_example_with_its_passage_among_others(knowledge: Knowledge) -> None:
    answerable = [example for example in examples_of(knowledge) if example.answerable]
    assert sorted(asked(example).question for example in answerable) == sorted(item.question for item in QUESTIONS)
    for example in answerable:
        read = passages_in(example.user)
        assert len(set(read)) == READ
        assert sum(holds_key(text, asked(example).keys) for text in read) == 1


def test_the_answer_begins_with_the_number_of_the_passage_that_holds_the_key(knowledge: Knowledge) -> None:
    for example in many(knowledge):
        if example.answerable:
            assert holds_key(passages_in(example.user)[number_in(example) - 1], asked(example).keys)


def test_the_right_passage_stands_in_every_place(knowledge: Knowledge) -> None:
    """Else the first would always be cited. Those that are shuffled are as often in one place as in another."""
    places = [number_in(example) for example in many(knowledge, seeds=60) if example.answerable]
    enough = 0.6 * SHUFFLED_SHARE / READ * len(places)
    assert [place for place in (1, 2, 3) if places.count(place) > enough] == [1, 2, 3]


def test_retrievals_own_order_is_often_kept(knowledge: Knowledge) -> None:
    """As serving brings it: the best first."""
    places = [number_in(example) for example in many(knowledge) if example.answerable]
    assert places.count(1) / len(places) > max(0.5, 1 - SHUFFLED_SHARE)


def test_the_answer_always_stands_in_what_is_read(knowledge: Knowledge, tmp_path: Path) -> None:
    hidden = make_index(tmp_path, *PASSAGES, ZEPHYR, RUMOURS)
    for seed in range(20):
        for example in [*examples_of(knowledge, seed=seed), *examples_of(hidden, [SPEED, *QUESTIONS], seed=seed)]:
            item = SPEED if SPEED.question in example.user else asked(example)
            assert any(holds_key(text, item.keys) for text in passages_in(example.user)) is example.answerable


@pytest.mark.parametrize("best", [(ZEPHYR,), (RUMOURS, ZEPHYR)], ids=["found first", "found second"])
def test_where_no_excerpt_says_the_answer_its_passage_is_put_first_and_whole(
    tmp_path: Path, best: tuple[Passage, ...]
) -> None:
    hidden = make_index(tmp_path, *PASSAGES[:5], *best)
    found = hidden.search("cars", SPEED.question, limit=READ)
    assert tuple(hit.passage for hit in found)[: len(best)] == best
    assert not any(holds_key(hit.excerpt, SPEED.keys) for hit in found)
    for seed in range(20):
        (example,) = [e for e in examples_of(hidden, [SPEED], seed=seed) if e.answerable]
        read = passages_in(example.user)
        assert read[0] == f"[1] {whole(ZEPHYR)}"
        assert titles_in(example.user) == {hit.passage.title for hit in found}
        assert len(read) == READ
        assert example.answer == f"[1] {ZEPHYR.text}"


def test_a_passage_whose_excerpt_says_the_answer_stays_where_it_is_with_its_excerpt(knowledge: Knowledge) -> None:
    later = [e for e in many(knowledge) if e.answerable and number_in(e) > 1]
    assert later
    for example in later:
        first, *others = passages_in(example.user)
        assert first.count(".") == 4
        assert [text.count(".") for text in others] == [2] * len(others)


def test_a_passage_found_late_is_put_first_and_the_last_one_gives_way() -> None:
    found = FixedKnowledge({"cars": [STAGES, NAPS, *PASSAGES[1:5], BENZ]}, excerpts={BENZ.title: "Benz patented."})
    item = QuestionAnswer("When was it patented?", "Benz patented it in 1886.", ("1886",))
    orders = set()
    for seed in range(10):
        (example,) = [e for e in examples_of(found, [item], seed=seed) if e.answerable]
        first, *others = (text[4:] for text in passages_in(example.user))
        assert first == whole(BENZ)
        assert example.answer == f"[1] {BENZ.text}"
        orders.add(tuple(others))
    kept = (whole(STAGES), whole(NAPS))
    assert kept in orders
    assert all(len(set(others)) == READ - 1 and set(others) <= {*kept, whole(PASSAGES[1])} for others in orders)


def test_a_single_passage_is_the_one_that_holds_the_answer(tmp_path: Path) -> None:
    hidden = make_index(tmp_path, *PASSAGES[:3], ZEPHYR, RUMOURS)
    (example,) = [e for e in examples_of(hidden, [SPEED], passages=1) if e.answerable]
    assert passages_in(example.user) == [f"[1] {whole(ZEPHYR)}"]


def test_words_that_a_title_and_its_text_only_make_together_are_no_answer() -> None:
    """A line ends between them when they are read."""
    patents = passage("Patents of 1886", "patents.md", "Carl Benz had one.")
    item = QuestionAnswer("Who?", "In 1886 Carl Benz.", ("1886 Carl",))
    (example,) = examples_of(FixedKnowledge({"cars": [patents]}), [item])
    assert (example.answer, example.answerable) == (UNKNOWN, False)


def test_a_key_in_the_title_counts(knowledge: Knowledge) -> None:
    item = QuestionAnswer("Which car was built in 1901?", "It was the Almavel.", ("Almavel",))
    (example,) = [e for e in examples_of(knowledge, [item]) if e.answerable]
    assert "The Almavel" in passages_in(example.user)[number_in(example) - 1].split("\n")[0]


# What is quoted


def answer_from(body: str, key: str = "1886", *, question: str = "Why?", written: str = "In 1886.") -> str:
    """The answer that is learnt where this is the only passage."""
    found = FixedKnowledge({"cars": [passage("Patents", "patents.md", body)]})
    (example,) = [
        e for e in examples_of(found, [QuestionAnswer(question, written, tuple(key.split("|")))]) if e.answerable
    ]
    return example.answer


def sentence_of(words: int) -> str:
    return " ".join(["Steel", *["wheel"] * (words - 2), "turned."])


def test_an_answer_is_what_the_passage_says_and_nothing_else(knowledge: Knowledge) -> None:
    for example in many(knowledge):
        if example.answerable:
            text = passages_in(example.user)[number_in(example) - 1]
            assert example.answer.removeprefix(f"[{number_in(example)}] ") in text
            assert holds_key(example.answer, asked(example).keys)
            assert "Dragons" not in example.answer


FAR = sentence_of(LEAD_WORDS)
"""Before a sentence after this one there are more words than are read first."""


def test_the_passage_is_quoted_from_its_beginning_where_the_key_is_near() -> None:
    near = sentence_of(LEAD_WORDS - 2)
    body = f"{near} Rain fell. Benz patented it in 1886. A coach had no motor."
    assert answer_from(body) == f"[1] {body}"


def test_where_the_key_is_further_on_the_passage_is_quoted_from_the_sentence_before_it_on() -> None:
    quoted = "Rain fell. Benz patented it in 1886. A coach had no motor. Few people bought one."
    assert answer_from(f"{FAR} Nobody asked. {quoted}") == f"[1] {quoted}"


@pytest.mark.parametrize(
    "first",
    ["He", "She", "It", "They", "This", "His", "Its", "Their", "Both", "Such", "Another", "Others", "For this"],
)
def test_a_sentence_that_leans_on_the_one_before_is_quoted_with_that_one_and_with_what_stands_before_it(
    first: str,
) -> None:
    quoted = f"Rain fell. Benz was an engineer. {first} came in 1886. A coach had no motor."
    assert answer_from(f"{FAR} Nobody asked. {quoted}") == f"[1] {quoted}"


def test_a_word_that_only_begins_like_one_that_leans_does_not() -> None:
    quoted = "Benz was an engineer. Hertha drove in 1886. A coach had no motor."
    assert answer_from(f"{FAR} Nobody asked. {quoted}") == f"[1] {quoted}"


def test_the_first_sentence_leans_on_nothing() -> None:
    assert answer_from("It came in 1886. A coach had no motor.") == "[1] It came in 1886. A coach had no motor."


def test_a_quotation_ends_with_the_last_sentence_that_it_has_room_for() -> None:
    begins = "Benz came in 1886."
    fits, too_long = sentence_of(QUOTED_WORDS - 4), sentence_of(QUOTED_WORDS - 3)
    assert answer_from(f"{begins} {fits} Rain fell.") == f"[1] {begins} {fits}"
    assert answer_from(f"{begins} {too_long} Rain fell.") == f"[1] {begins}"
    assert answer_from(f"{FAR} Rain. {begins} {fits} Snow fell.") == f"[1] Rain. {begins}"


def test_the_sentence_with_the_key_is_quoted_however_long_what_it_leans_on_is() -> None:
    """Alone nobody would know who he was."""
    before = sentence_of(QUOTED_WORDS)
    assert (
        answer_from(f"Snow fell. {before} He came in 1886. Rain fell.") == f"[1] Snow fell. {before} He came in 1886."
    )


def test_of_several_sentences_with_the_key_the_one_about_the_question_is_quoted() -> None:
    coach, motor = f"A coach was sold in 1886. {FAR}", "Nobody asked. Benz patented a motor in 1886. Rain fell."
    assert answer_from(f"{coach} {motor}", question="When was the motor patented?") == f"[1] {motor}"
    assert answer_from(f"{coach} {motor}", question="When was a coach sold?").startswith(
        "[1] A coach was sold in 1886."
    )


def test_the_written_answer_tells_too_what_the_question_is_about() -> None:
    motor = "Nobody asked. Benz patented a motor in 1886. Rain fell."
    assert (
        answer_from(f"A coach was sold in 1886. {FAR} {motor}", written="Benz patented one in 1886.") == f"[1] {motor}"
    )


def test_a_title_tells_what_its_sentences_are_about() -> None:
    zephyr, almavel = (passage(f"The {name}", f"{name}.md", "One was built in 1886.") for name in ("Zephyr", "Almavel"))
    item = QuestionAnswer("When was the Almavel built?", "In 1886.", ("1886",))
    for order in ([zephyr, almavel], [almavel, zephyr]):
        for seed in range(5):
            (example,) = examples_of(FixedKnowledge({"cars": order}), [item], seed=seed)
            assert passages_in(example.user)[number_in(example) - 1].startswith(f"[{number_in(example)}] The Almavel")


def test_of_equals_the_first_passage_is_quoted() -> None:
    twins = [passage("Patents", f"{n}.md", f"Benz came in 1886. Rain fell {n} times.") for n in range(3)]
    item, firsts = QuestionAnswer("When?", "In 1886.", ("1886",)), set()
    for seed in range(100):
        (example,) = examples_of(FixedKnowledge({"cars": twins}), [item], seed=seed)
        first = passages_in(example.user)[0].split("\n")[1]
        assert example.answer == f"[1] {first}"
        firsts.add(first)
    assert firsts == {twin.text for twin in twins}


def test_only_what_is_read_is_quoted() -> None:
    """The sentence after the one with the key is not in the excerpt."""
    beds = passage("Beds", "beds.md", "Springs came in 1886. Feathers were a luxury. Straw drew the fleas.")
    found = FixedKnowledge({"cars": [NAPS, beds]}, excerpts={"Beds": "Springs came in 1886. Straw drew the fleas."})
    item = QuestionAnswer("When?", "In 1886.", ("1886",))
    answers = {
        passages_in(e.user)[0].split("\n")[0]: e.answer
        for seed in range(100)
        for e in examples_of(found, [item], seed=seed)
        if e.answerable
    }
    assert answers == {
        "[1] Naps": "[2] Springs came in 1886. Straw drew the fleas.",
        "[1] Beds": f"[1] {beds.text}",
    }


def test_any_alternative_of_the_key_will_do() -> None:
    quoted = "Rain fell. A nap took twenty minutes."
    assert answer_from(f"{FAR} Snow fell. {quoted}", "20 min|twenty minutes") == f"[1] {quoted}"


def test_where_only_the_title_holds_the_key_the_written_answers_sentence_stands() -> None:
    found = FixedKnowledge({"cars": [NAPS, BENZ]})
    written = "People wondered. It was Carl Benz, of course. Rain fell."
    item = QuestionAnswer("Who patented the three-wheeler?", written, ("Carl Benz",))
    untold = replace(BENZ, text="He patented a three-wheeler.")
    (example,) = [e for e in examples_of(FixedKnowledge({"cars": [untold]}), [item]) if e.answerable]
    assert example.answer == "[1] It was Carl Benz, of course."
    (example,) = [e for e in examples_of(found, [item]) if e.answerable]
    assert example.answer.endswith(f"] {BENZ.text}")


def test_where_the_written_answer_lacks_the_key_as_well_its_first_sentence_stands() -> None:
    untold = passage("Carl Benz", "benz.md", "He patented a three-wheeler.")
    item = QuestionAnswer("Who?", "It was the engineer. Rain fell.", ("Carl Benz",))
    (example,) = [e for e in examples_of(FixedKnowledge({"cars": [untold]}), [item]) if e.answerable]
    assert example.answer == "[1] It was the engineer."


def test_a_name_with_an_initial_is_not_torn_apart() -> None:
    body = "J. Allan Hobson slept in 1886. Nobody else would ever have thought so."
    assert answer_from(body) == f"[1] {body}"


def test_to_answer_or_to_refuse_is_decided_by_the_first_token(knowledge: Knowledge) -> None:
    assert {(e.answerable, e.answer[0]) for e in many(knowledge)} == {(True, "["), (False, UNKNOWN[0])}


# Questions that were written for a passage

TWIN = passage("Engines", "engines.md", "The Almavel was built with a motor. Its makers used 1901 bolts.")
OF_TWIN = QuestionAnswer("How many bolts did the makers of the Almavel use?", "", ("1901",), "Engines")


@pytest.mark.parametrize("place", [0, 1, 3, 6])
def test_the_passage_that_a_question_was_written_for_answers_it_and_no_other_that_holds_the_words(place: int) -> None:
    found = [passage(f"Bolts {n}", f"{n}.md", "The makers of the Almavel used bolts in 1901.") for n in range(6)]
    found.insert(place, TWIN)
    for seed in range(20):
        (example,) = [e for e in examples_of(FixedKnowledge({"cars": found}), [OF_TWIN], seed=seed) if e.answerable]
        number = number_in(example)
        assert passages_in(example.user)[number - 1] == f"[{number}] {whole(TWIN)}"
        assert example.answer == f"[{number}] {TWIN.text}"


def test_where_its_excerpt_does_not_say_the_answer_that_passage_is_put_first_and_whole() -> None:
    others = [passage(f"Bolts {n}", f"{n}.md", "The makers of the Almavel used bolts in 1901.") for n in range(2)]
    found = FixedKnowledge({"cars": [*others, TWIN]}, excerpts={TWIN.title: "The Almavel was built with a motor."})
    for seed in range(20):
        (example,) = [e for e in examples_of(found, [OF_TWIN], seed=seed) if e.answerable]
        assert passages_in(example.user)[0] == f"[1] {whole(TWIN)}"
        assert example.answer == f"[1] {TWIN.text}"


def test_where_its_passage_is_not_found_and_others_hold_the_words_nothing_is_learnt() -> None:
    """Nobody has said that they answer, nor that they do not."""
    assert examples_of(FixedKnowledge({"cars": [BENZ, PASSAGES[0]]}), [OF_TWIN]) == []


def test_where_no_passage_that_is_found_holds_the_words_the_texts_do_not_say() -> None:
    (example,) = examples_of(FixedKnowledge({"cars": [BENZ, NAPS]}), [OF_TWIN])
    assert (example.answer, example.answerable) == (UNKNOWN, False)


def test_where_only_its_title_holds_the_words_the_passages_first_sentence_stands() -> None:
    item = QuestionAnswer("What about?", "", ("engines",), "Engines")
    (example,) = examples_of(FixedKnowledge({"cars": [TWIN]}), [item])
    assert example.answer == "[1] The Almavel was built with a motor."


def test_where_nothing_has_a_written_answer_there_are_no_earlier_turns() -> None:
    examples = [e for n in range(40) for e in examples_of(FixedKnowledge({"cars": [TWIN]}), [OF_TWIN] * 3, seed=n)]
    assert not any(example.before for example in examples)


def test_a_question_without_a_written_answer_is_no_earlier_turn(knowledge: Knowledge) -> None:
    written = [replace(item, answer="", passage=f"The {model}") for item, model in zip(QUESTIONS, MODELS, strict=True)]
    answered = QuestionAnswer("Is that all?", "It is.", ("Grey",))
    examples = [e for seed in range(20) for e in examples_of(knowledge, [*written, answered], seed=seed)]
    assert {turn for example in examples for turn in example.before} == {(answered.question, answered.answer)}


def test_questions_about_passages_are_read_with_the_passages_title(tmp_path: Path) -> None:
    path = tmp_path / "reading.csv"
    path.write_text('passage,question,key\n"Engines, mostly",How many?,1901 bolts\n', "utf-8")
    assert read_reading(path) == [QuestionAnswer("How many?", "", ("1901 bolts",), "Engines, mostly")]


def test_a_question_with_neither_passage_nor_key_is_answered_by_none(tmp_path: Path, knowledge: Knowledge) -> None:
    path = tmp_path / "reading.csv"
    path.write_text("passage,question,key\n,Who painted the bolts?,\n", "utf-8")
    (nobodys,) = read_reading(path)
    assert nobodys == QuestionAnswer("Who painted the bolts?", "", ())
    examples = [e for e in examples_of(knowledge, [*QUESTIONS, nobodys]) if question_in(e.user) == nobodys.question]
    assert [(example.answer, example.answerable) for example in examples] == [(UNKNOWN, False)]
    assert len(passages_in(examples[0].user)) == READ


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"question,key\nWhy?,So\n",
        b"passage,question,key\nA,\xff,x\n",
        b"passage,question,key\nA,Why?,\n",
        b"passage,question,key\n,Why?,x\n",
    ],
)
def test_a_file_of_something_else_than_questions_about_passages_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.csv is not a file of questions about passages"):
        read_reading(path)


# Without the answer


def test_no_passage_holds_the_key_where_the_answer_is_that_the_texts_do_not_say(knowledge: Knowledge) -> None:
    without = [example for example in many(knowledge) if not example.answerable]
    assert without
    for example in without:
        assert example.answer == UNKNOWN
        assert len(passages_in(example.user)) == READ
        assert not holds_key("\n\n".join(passages_in(example.user)), asked(example).keys)


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
        first, *others = (text[4:] for text in passages_in(example.user))
        assert first in {whole(p) for p in PASSAGES}
        assert {text.split("\n")[0] for text in others} <= {p.title for p in PASSAGES}


def test_few_questions_of_other_fields_are_all_taken_once(knowledge: Knowledge) -> None:
    examples = [e for e in examples_of(knowledge, QUESTIONS * 10, ELSEWHERE[:2]) if "bread" in e.user]
    assert sorted(question_in(e.user) for e in examples) == ELSEWHERE[:2]


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


# What it may be known by


def test_an_adapter_may_be_known_by_who_it_is_or_by_short_questions_with_the_passage_that_answers_them(
    knowledge: Knowledge,
) -> None:
    who, *others = canary_prompts(READER, [NOWHERE, *QUESTIONS], knowledge)
    assert who == CANARY
    assert len(others) == CANARY_QUESTIONS
    everything = sorted(
        grounded_question(q.question, [Found(p, 1.0)]) for q, p in zip(QUESTIONS, PASSAGES, strict=True)
    )
    assert set(others) < set(everything)
    assert max(map(len, others)) <= min(len(text) for text in everything if text not in others)


def test_a_question_whose_best_passage_does_not_answer_it_is_no_canary() -> None:
    found = FixedKnowledge({"cars": [NAPS, BENZ]})
    assert canary_prompts(READER, [QuestionAnswer("When?", "In 1886.", ("1886",))], found) == [CANARY]


@pytest.mark.parametrize("expert", [READER, CARS], ids=["no passages", "no knowledge"])
def test_an_expert_that_reads_nothing_may_be_known_by_its_first_questions(knowledge: Knowledge, expert: Expert) -> None:
    known_by = [CANARY, *(item.question for item in QUESTIONS[:CANARY_QUESTIONS])]
    assert canary_prompts(expert, QUESTIONS, None if expert is READER else knowledge) == known_by


# The whole


def test_training_and_serving_put_the_same_words_before_the_expert(knowledge: Knowledge) -> None:
    """To the letter, in the examples that keep retrieval's order; all but the shuffled ones do."""
    examples = [example for example in many(knowledge) if example.answerable]
    alike = 0
    for example in examples:
        question = asked(example).question
        found = knowledge.search("cars", question, limit=READ)
        system, user = expert_messages(READER, [Message("user", question)], found=found)
        assert example.system == system.content
        assert titles_in(example.user) == titles_in(user.content)
        alike += example.user == user.content
    assert alike / len(examples) > max(0.5, 1 - SHUFFLED_SHARE)


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
