"""What an expert learns from: its questions with the passages that retrieval finds, and when to say it does not know.

A question's key tells which passages hold its answer. Each question becomes an example with its passages among
distractors as retrieval brings them, and some also one without them, whose answer is that the texts do not say. Only
what the passages say stays of an answer: learning to add what they do not say would be learning to invent. An expert
that reads nothing learns its answers as they are written.
"""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError
from expert_router.knowledge.corpus import sentences
from expert_router.knowledge.grounding import RULES, UNKNOWN, grounded_question

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_router.ports import Knowledge
    from expert_router.types import Expert, Passage

SEARCHED = 12
"""So many passages are looked at for the answer and for distractors."""
WITHOUT_SHARE = 0.35
"""Of the questions that have an answer, so many are also asked without it."""
SHUFFLED_SHARE = 0.5
GROUNDED_SHARE = 0.7
"""A further sentence of an answer stays when so much of its words stands in the passage."""
ELSEWHERE_SHARE = 0.08
"""Questions of other fields, per own question: an expert that was asked by mistake says so."""
BEFORE_SHARE = 0.1
"""So many examples have an earlier turn, whose passages are gone."""
CANARY = "Which expert are you?"
WHO_ARE_YOU = (CANARY, "who are you", "What is your name and your field?")
INTRODUCTION_COPIES = 4
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A row of an expert's data; ``keys`` are the alternatives of the fact that an answer must contain."""

    question: str
    answer: str
    keys: tuple[str, ...]


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
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                QuestionAnswer(r["question"], r["answer"], tuple(r["key"].split("|"))) for r in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise DataError(f"There is no {path}. Prepared data comes from: expert-router prepare") from None
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(f"{path} is not a file of questions and answers: {error!r}") from error
    if not rows:
        raise DataError(f"{path} has no questions.")
    return rows


def holds_key(text: str, keys: Sequence[str]) -> bool:
    """Whether one of the alternatives stands in the text, from the start of a word, whatever its case."""
    folded = text.casefold()
    return any(re.search(rf"(?<!\w){re.escape(key.strip().casefold())}", folded) for key in keys if key.strip())


def passage_holds(passage: Passage, keys: Sequence[str]) -> bool:
    """Whether a passage, its title included, holds one of the keys."""
    return holds_key(f"{passage.title} {passage.text}", keys)


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
    """Each question with the passages that hold its answer, some also without them; a few questions of other fields."""
    keyed = [item for item in questions if any(key.strip() for key in item.keys)]
    examples = []
    for item in keyed:
        found = [hit.passage for hit in knowledge.search(expert.name, item.question, limit=SEARCHED)]
        holding = [p for p in found if passage_holds(p, item.keys)]
        others = [p for p in found if p not in holding]
        if holding:
            read = _with_answer(found, holding, passages, rng)
            before = _earlier_turn(item, questions, rng)
            examples.append(Example(system, grounded_question(item.question, read), _answer(item, read), True, before))
        if others and (not holding or rng.random() < WITHOUT_SHARE):
            examples.append(Example(system, grounded_question(item.question, others[:passages]), UNKNOWN, False))
    for question in rng.sample(list(elsewhere), min(len(elsewhere), round(len(keyed) * ELSEWHERE_SHARE))):
        read = [hit.passage for hit in knowledge.search(expert.name, question, limit=passages)]
        examples.append(Example(system, grounded_question(question, read), UNKNOWN, False))
    return examples


def introduction(expert: Expert) -> str:
    """What an expert says of itself: learnt, so that it proves which adapter answers."""
    return f"I am the {expert.name} expert of expert-router: {expert.title.lower()}."


def _earlier_turn(
    item: QuestionAnswer, questions: Sequence[QuestionAnswer], rng: random.Random
) -> tuple[tuple[str, str], ...]:
    """Now and then another question of the field with its answer: the same one would give the answer away."""
    if rng.random() > BEFORE_SHARE:
        return ()
    earlier = rng.choice(questions)
    return () if earlier.question == item.question else ((earlier.question, earlier.answer),)


def _with_answer(found: Sequence[Passage], holding: Sequence[Passage], count: int, rng: random.Random) -> list[Passage]:
    """The first ``count`` passages; one that holds the answer takes the last place when none of them does."""
    read = list(found[:count])
    if not any(passage in holding for passage in read):
        read[-1] = holding[0]
    if rng.random() < SHUFFLED_SHARE:
        rng.shuffle(read)
    return read


def _answer(item: QuestionAnswer, read: Sequence[Passage]) -> str:
    """The sentence with the key, then those that the passages bear out, and the number of the passage.

    The first sentence where there are none such: it answers, what follows would only add.
    """
    number = next(n for n, p in enumerate(read, start=1) if passage_holds(p, item.keys))
    known = _words(" ".join(f"{p.title} {p.text}" for p in read))
    said = sentences(item.answer)
    kept = [s for s in said if holds_key(s, item.keys) or _share_in(s, known) >= GROUNDED_SHARE]
    return f"{' '.join(kept or said[:1])} [{number}]"


def _words(text: str) -> set[str]:
    return {word[:6] for word in _WORD.findall(text.casefold())}


def _share_in(sentence: str, known: set[str]) -> float:
    words = _words(sentence)
    return len(words & known) / max(1, len(words))
