"""Whether a question is decided alike however it is typed: in capitals, without marks, misspelt, politely, reworded."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError
from expert_router.evaluation.intervals import share_of_some
from expert_router.evaluation.routing import outcome
from expert_router.training.augment import mistyped
from expert_router.training.examples import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from expert_router.evaluation.intervals import Estimate
    from expert_router.types import Decision

PREAMBLES = (
    "Hello! I hope you are well. ",
    "Good evening, could you please help me with this: ",
    "Sorry to bother you, but I would like to know: ",
    "Thanks in advance for your answer. ",
    "Hi there :) ",
)
_MARKS = re.compile(r"[^\w\s]+")


@dataclass(frozen=True, slots=True)
class Stability:
    """How often a way of typing left the decision as it was, and the questions for which it did not."""

    way: str
    same: Estimate
    changed: list[tuple[str, str]]


def read_paraphrases(path: Path) -> list[tuple[str, str]]:
    """Questions, each with the same in other words. Raises ``DataError``."""
    what = "a file of questions and paraphrases"
    pairs = read_rows(path, what, lambda row: (row["question"], row["paraphrase"]))
    if not pairs:
        raise DataError(f"{path} has no questions.")
    return pairs


def measure_stability(
    pairs: Sequence[tuple[str, str]], decide: Callable[[str], Decision], seed: int = 0
) -> list[Stability]:
    """One result a way of typing; the same decision is the same kind with the same experts."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    decided = [outcome(decide(question)) for question, _ in pairs]
    results = []
    for way, retype in _ways(rng).items():
        typed = [retype(question, paraphrase) for question, paraphrase in pairs]
        alike = [outcome(decide(text)) == before for text, before in zip(typed, decided, strict=True)]
        changed = [(question, text) for (question, _), text, kept in zip(pairs, typed, alike, strict=True) if not kept]
        results.append(Stability(way, share_of_some(alike), changed))
    return results


def _ways(rng: random.Random) -> dict[str, Callable[[str, str], str]]:
    return {
        "lower case": lambda question, _: question.lower(),
        "CAPITALS": lambda question, _: question.upper(),
        "no punctuation": lambda question, _: " ".join(_MARKS.sub(" ", question).split()),
        "a typing error": lambda question, _: mistyped(question, rng),
        "a polite preamble": lambda question, _: rng.choice(PREAMBLES) + question,
        "a paraphrase": lambda _, paraphrase: paraphrase,
    }
