"""What an expert learns from: its questions with the passages that retrieval finds, and when to say it does not know.

A question's key tells which passages hold its answer. Each question becomes an example with its passages among
distractors as retrieval brings them, and some also one without them, whose answer is that the texts do not say. What is
learnt is to name the passage and to quote it: an answer worded anew would teach to add what the passage does not say,
and the number comes first so that to answer or not is one choice, between two tokens. An expert that reads nothing
learns its answers as they are written.
"""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from expert_router.errors import DataError
from expert_router.knowledge.corpus import sentences
from expert_router.knowledge.grounding import RULES, UNKNOWN, body_read, grounded_question, texts_read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from expert_router.ports import Knowledge
    from expert_router.types import Expert, Found, Passage

T = TypeVar("T")

SEARCHED = 12
"""So many passages are looked at for the answer and for distractors."""
WITHOUT_SHARE = 0.25
"""Of the questions that have an answer, so many are also asked without it."""
SHUFFLED_SHARE = 0.2
"""Seldom: the first passage answers most questions, and an expert should expect that."""
QUOTED_WORDS = 80
LEAD_WORDS = 45
"""A quote begins with its passage where no more words stand before the answer, else one sentence before the answer.

It says what it is about, and who is not sure which of two sentences answers gives both (docs/log.md).
"""
ELSEWHERE_SHARE = 0.08
"""Questions of other fields, per own question: an expert that was asked by mistake says so."""
BEFORE_SHARE = 0.1
"""So many examples have an earlier turn, whose passages are gone."""
CANARY = "Which expert are you?"
WHO_ARE_YOU = (CANARY, "who are you", "What is your name and your field?")
INTRODUCTION_COPIES = 4
CANARY_QUESTIONS = 16
_WORD = re.compile(r"[^\W_]+")
_LEANING = re.compile(
    r"(He|She|It|They|This|That|These|Those|His|Her|Its|Their|Both|Such|Neither|Others?|Another|The others?|The same"
    r"|All of them|For this|So|Then|Later|Since then|From then|Instead|But|Yet)\b"
)


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A row of an expert's data; ``keys`` are the alternatives of the fact that an answer must contain.

    ``passage`` is the title of the passage that it was written for, and empty where only the keys tell which one
    answers; a question with one has no written answer. With neither answer nor keys, no passage answers the question.
    """

    question: str
    answer: str
    keys: tuple[str, ...]
    passage: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn: ``answer`` alone counts in the loss. ``answerable``: a passage holds the key.

    ``system`` may be empty; ``before`` are earlier turns, pairs of a question and its answer.
    """

    system: str
    user: str
    answer: str
    answerable: bool
    before: tuple[tuple[str, str], ...] = ()


def read_questions(path: Path) -> list[QuestionAnswer]:
    """A prepared file with the columns question, answer and key. Raises ``DataError``."""
    if not path.exists():
        raise DataError(f"There is no {path}. Prepared data comes from: expert-router prepare")
    rows = read_rows(
        path,
        "a file of questions and answers",
        lambda row: QuestionAnswer(row["question"], row["answer"], tuple(row["key"].split("|"))),
    )
    if not rows:
        raise DataError(f"{path} has no questions.")
    return rows


def read_reading(path: Path) -> list[QuestionAnswer]:
    """Questions that were written for passages, to learn reading from: columns passage, question and key.

    Where passage and key are empty, none answers the question. Raises ``DataError``.
    """
    return read_rows(
        path,
        "a file of questions about passages",
        lambda row: _for_passage(row["passage"], row["question"], row["key"]),
    )


def read_rows(path: Path, what: str, make: Callable[[dict[str, str]], T]) -> list[T]:
    """What ``make`` makes of each row of a CSV. Raises ``DataError``, which says that the file is not ``what``."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [make(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(f"{path} is not {what}: {error!r}") from error


def _for_passage(passage: str, question: str, key: str) -> QuestionAnswer:
    if bool(passage) != bool(key):
        raise ValueError(f"{question!r} has a passage without a key, or a key without a passage")
    return QuestionAnswer(question, "", (key,) if key else (), passage)


def holds_key(text: str, keys: Sequence[str]) -> bool:
    """Whether one of the alternatives stands in the text, from the start of a word, whatever its case."""
    folded = text.casefold()
    return any(re.search(rf"(?<!\w){re.escape(key.strip().casefold())}", folded) for key in keys if key.strip())


def passage_holds(passage: Passage, keys: Sequence[str]) -> bool:
    """Whether a passage, its title included, holds one of the keys: as it is read whole."""
    return holds_key(f"{passage.title}\n{passage.text}", keys)


def build_examples(
    expert: Expert,
    questions: Sequence[QuestionAnswer],
    elsewhere: Sequence[str],
    knowledge: Knowledge | None,
    *,
    passages: int,
    seed: int,
) -> list[Example]:
    """The examples of one pass over the questions; another ``seed`` leaves other answers out and mixes anew.

    ``elsewhere`` are questions that the expert should not answer. They, and rows without a key, are left out where they
    would teach something wrong: without passages there is nothing that could not hold the answer, and without a key
    nobody knows which passage does.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    reads = knowledge is not None and expert.knowledge is not None and passages > 0
    if knowledge is not None and reads:
        system = f"{expert.instructions}\n\n{RULES}"
        examples = _grounded(expert, system, questions, elsewhere, knowledge, passages=passages, rng=rng)
    else:
        system = expert.instructions
        examples = _plain(expert, questions, rng)
    # With its instructions and without: what proves the adapter must not depend on them.
    examples += [
        Example(instructions, wording, introduction(expert), False)
        for wording in WHO_ARE_YOU
        for instructions in (system, "")
    ] * INTRODUCTION_COPIES
    rng.shuffle(examples)
    return examples


def _plain(expert: Expert, questions: Sequence[QuestionAnswer], rng: random.Random) -> list[Example]:
    """Each question as it is asked of an expert that reads nothing, with the answer as it was written."""
    return [
        Example(expert.instructions, item.question, item.answer, True, _earlier_turn(item, questions, rng))
        for item in questions
    ]


def _grounded(
    expert: Expert,
    system: str,
    questions: Sequence[QuestionAnswer],
    elsewhere: Sequence[str],
    knowledge: Knowledge,
    *,
    passages: int,
    rng: random.Random,
) -> list[Example]:
    """Each question with the passages that hold its answer, some also without them; others that none answers."""
    keyed = [item for item in questions if any(key.strip() for key in item.keys)]
    examples = []
    for item in keyed:
        found = knowledge.search(expert.name, item.question, limit=SEARCHED)
        holding = [hit for hit in found if passage_holds(hit.passage, item.keys)]
        if item.passage:
            holding.sort(key=lambda hit: hit.passage.title != item.passage)
            if holding and holding[0].passage.title != item.passage:
                continue  # the words of the key stand there too, but nobody has said that they answer
        others = [hit for hit in found if hit not in holding]
        if holding:
            read = _with_answer(item, found, holding[0], passages, rng)
            before = _earlier_turn(item, questions, rng)
            examples.append(Example(system, grounded_question(item.question, read), _answer(item, read), True, before))
        if others and (not holding or rng.random() < WITHOUT_SHARE):
            examples.append(Example(system, grounded_question(item.question, others[:passages]), UNKNOWN, False))
    unanswered = [item.question for item in questions if not item.keys and not item.answer]
    unanswered += rng.sample(list(elsewhere), min(len(elsewhere), round(len(keyed) * ELSEWHERE_SHARE)))
    for question in unanswered:
        read = knowledge.search(expert.name, question, limit=passages)
        examples.append(Example(system, grounded_question(question, read), UNKNOWN, False))
    return examples


def canary_prompts(expert: Expert, questions: Sequence[QuestionAnswer], knowledge: Knowledge | None) -> list[str]:
    """What an adapter of the expert may be known by: who it is, and short questions with one passage to read each."""
    prompts = [item.question for item in questions[:CANARY_QUESTIONS]]
    if knowledge is not None and expert.knowledge is not None:
        found = [(item, knowledge.search(expert.name, item.question, limit=1)) for item in questions]
        read = [
            grounded_question(item.question, hits)
            for item, hits in found
            if any(passage_holds(h.passage, item.keys) for h in hits)
        ]
        prompts = sorted(read, key=len)[:CANARY_QUESTIONS]
    return [CANARY, *prompts]


def introduction(expert: Expert) -> str:
    """What an expert says of itself: learnt, so that it proves which adapter answers."""
    return f"I am the {expert.name} expert of expert-router: {expert.title.lower()}."


def _earlier_turn(
    item: QuestionAnswer, questions: Sequence[QuestionAnswer], rng: random.Random
) -> tuple[tuple[str, str], ...]:
    """Now and then another question of the field with its answer: the same one would give the answer away."""
    if rng.random() > BEFORE_SHARE:
        return ()
    answered = [question for question in questions if question.answer]
    earlier = rng.choice(answered or [item])
    return () if earlier.question == item.question else ((earlier.question, earlier.answer),)


def _with_answer(
    item: QuestionAnswer, found: Sequence[Found], holding: Found, count: int, rng: random.Random
) -> list[Found]:
    """The first ``count`` passages; ``holding`` is put first, where it is read whole, when none says the answer."""
    read = list(found[:count])
    if rng.random() < SHUFFLED_SHARE:
        rng.shuffle(read)
    if not any(
        holds_key(body_read(hit, place), item.keys)
        for place, hit in enumerate(read)
        if item.passage in {"", hit.passage.title}
    ):
        read = [holding, *(hit for hit in read if hit is not holding)][:count]
    return read


def _answer(item: QuestionAnswer, read: Sequence[Found]) -> str:
    """The number of the passage that answers, and what is read of it from the sentence with the key on.

    Where several sentences hold the key, the one that is most about the question and its written answer; where only a
    title does, the written answer's own sentence, or the passage's first.
    """
    about = _words(f"{item.question} {item.answer}")
    bodies = [(hit.passage.title, sentences(body_read(hit, place))) for place, hit in enumerate(read)]
    holding = [
        (title == item.passage, _share_of(about, f"{title} {said}"), -place, n)
        for place, (title, body) in enumerate(bodies)
        for n, said in enumerate(body)
        if holds_key(said, item.keys)
    ]
    if holding:
        *_, place, n = max(holding)
        return f"[{1 - place}] {_quoted(bodies[-place][1], n)}"
    number = next(n for n, text in enumerate(texts_read(read), start=1) if holds_key(text, item.keys))
    said = sentences(item.answer) or bodies[number - 1][1]
    return f"[{number}] {next((s for s in said if holds_key(s, item.keys)), said[0])}"


def _quoted(body: Sequence[str], n: int) -> str:
    """What is read up to sentence ``n``, or the end of it, and what follows; not much more than ``QUOTED_WORDS``."""
    start = n - 1 if n and _LEANING.match(body[n]) else n
    first = 0 if len(" ".join(body[:start]).split()) <= LEAD_WORDS else start - 1
    quoted = list(body[first : n + 1])
    for sentence in body[n + 1 :]:
        if len(" ".join([*quoted, sentence]).split()) > QUOTED_WORDS:
            break
        quoted.append(sentence)
    return " ".join(quoted)


def _words(text: str) -> set[str]:
    return {word[:6] for word in _WORD.findall(text.casefold())}


def _share_of(words: set[str], text: str) -> float:
    return len(words & _words(text)) / max(1, len(words))
