"""How often an answer would be given again, and how often to the wrong question, on judged pairs of questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.evaluation.intervals import share
from expert_router.training.examples import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from expert_router.evaluation.intervals import Estimate

SPLITS = ("calibration", "test")
ANSWERS = ("same", "different")


@dataclass(frozen=True, slots=True)
class Pair:
    first: str
    second: str
    same: bool
    split: str


@dataclass(frozen=True, slots=True)
class SameAnswer:
    """``hits`` of the pairs with the same answer, ``false`` of the others; ``wrong`` are the pairs judged wrongly."""

    split: str
    hits: Estimate | None
    false: Estimate | None
    wrong: list[Pair]


def read_pairs(path: Path) -> list[Pair]:
    """Raises ``DataError``."""
    return read_rows(
        path,
        "a file of judged pairs",
        lambda row: Pair(row["first"], row["second"], ANSWERS.index(row["answer"]) == 0, row["split"]),
    )


def measure_same_answer(pairs: Sequence[Pair], judge: Callable[[str, str], bool]) -> list[SameAnswer]:
    """One a split; an answer is given again to either question, so ``judge`` has to say it of both orders."""
    results = []
    for split in SPLITS:
        judged = [(pair, judge(pair.first, pair.second), judge(pair.second, pair.first)) for pair in pairs]
        own = [each for each in judged if each[0].split == split]
        hits = [one and other for pair, one, other in own if pair.same]
        false = [one or other for pair, one, other in own if not pair.same]
        wrong = [pair for pair, one, other in own if not (one == other == pair.same)]
        results.append(SameAnswer(split, share(hits), share(false), wrong))
    return results
