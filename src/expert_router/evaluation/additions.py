"""How well a few examples teach the router one more expert: of 0, 4, 8, 20 and all of them, drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from expert_router.evaluation.intervals import share_of_some

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.intervals import Estimate
    from expert_router.types import Decision

    Decide = Callable[[str], Decision]

COUNTS = (0, 4, 8, 20)
DRAWS = 5


@dataclass(frozen=True, slots=True)
class AdditionResult:
    """After ``examples`` were taught, over all draws.

    ``reached``: questions of the new expert that it alone answers. ``kept_away``: questions that share its words and
    are for another expert or nobody, decided rightly. ``unchanged``: questions of the others' test split that are
    decided as before.
    """

    examples: int
    reached: Estimate
    kept_away: Estimate
    unchanged: Estimate


def measure_additions(
    name: str,
    examples: Sequence[str],
    *,
    description: str,
    test: Sequence[LabelledQuestion],
    others: Sequence[LabelledQuestion],
    taught: Callable[[Sequence[str]], Decide],
    progress: bool = False,
) -> list[AdditionResult]:
    """``taught`` gives what decides once examples, or none, were learnt; ``description`` stands for none."""
    before = taught([])
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    draws = [(0, [description])]
    draws += [(count, rng.sample(list(examples), count)) for count in COUNTS[1:] for _ in range(DRAWS)]
    draws.append((len(examples), list(examples)))
    was = [_who(before(question.query)) for question in others]
    marks: dict[int, tuple[list[bool], list[bool], list[bool]]] = {}
    for count, drawn in tqdm(draws, desc="teach", unit="router", disable=None if progress else True):
        decide = taught(drawn)
        reached, kept_away, unchanged = marks.setdefault(count, ([], [], []))
        for question in test:
            right = _who(decide(question.query)) == sorted(question.experts)
            if question.experts == {name}:
                reached.append(right)
            elif name not in question.experts:
                kept_away.append(right)
        unchanged += [_who(decide(q.query)) == old for q, old in zip(others, was, strict=True)]
    return [AdditionResult(count, *map(share_of_some, lists)) for count, lists in marks.items()]


def _who(decision: Decision) -> list[str]:
    """Who answers; asked back is an answer of its own."""
    return ["?"] if decision.kind == "clarify" else sorted(decision.experts)
