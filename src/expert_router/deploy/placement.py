"""Which replica an expert's request goes to: the policy alone, without Ray.

Where the expert is loaded, or was just sent to be; of several such the one with the least outstanding. Once each of
them has as many requests as it is meant to have, it also goes to one that has fewer, which loads the expert too: a hot
expert spreads by itself. One that is loaded nowhere goes where the fewest experts are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from expert_router.types import Expert, Served


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as the gateway sees it: the keys of the experts that it holds, and its unanswered requests."""

    name: str
    held: frozenset[str]
    outstanding: int


def placement_key(expert: Expert, served: Served) -> str:
    """What a replica holds or does not: an expert with its weights, so that a new adapter is another key."""
    return f"{expert.name}@{(served.adapter or served.base)[:12]}"


def rank(key: str, candidates: Sequence[Candidate], overflow_at: int) -> list[list[Candidate]]:
    """All candidates, in groups, the best first; of a group the one with the least outstanding is meant."""
    free = [each for each in candidates if each.outstanding < overflow_at]
    holders = [each for each in free if key in each.held]
    others = _by_fewest_held(each for each in free if key not in each.held)
    busy = [each for each in candidates if each.outstanding >= overflow_at]
    return [group for group in (holders, *others, busy) if group]


def _by_fewest_held(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    fewest_first = sorted(candidates, key=lambda each: (len(each.held), each.outstanding, each.name))
    return [list(group) for _, group in groupby(fewest_first, key=lambda each: len(each.held))]
