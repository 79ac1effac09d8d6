"""Splitting: train, calibration and test, such that no question of one split has a twin in another.

Similar questions form a family, across files and labels, and a family goes to one split as a whole. Where a family
goes depends on the words of its first question and the seed alone, so that a row added to a file leaves the other
rows where they are. The exceptions are small: a row that joins two families moves one of them, and the last family
of a small topic may move to keep the topic in every split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from expert_router.data.clean import Record
    from expert_router.data.similar import Pair

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
RATIOS: Mapping[Split, float] = {"train": 0.7, "calibration": 0.1, "test": 0.2}

_FEWEST_FOR_EACH = 3
"""A label of a file with this many families has a question in every split."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """``splits`` has one entry per record. ``apart`` counts the similar pairs in different splits.

    It is 0 unless a family of similar questions was larger than ``largest_family`` and had to be divided.
    """

    splits: tuple[Split, ...]
    apart: int
    largest_family: int


def assign(records: Sequence[Record], pairs: Sequence[Pair], seed: int) -> Assignment:
    limit = largest_family(len(records))
    family = families(len(records), pairs, limit)
    heads = sorted(set(family))
    chosen = {head: _split_at(position(records[head].words, seed)) for head in heads}
    measured = {head for head, record in zip(family, records, strict=True) if not record.teaches}
    chosen |= dict.fromkeys((head for head in heads if head not in measured), "train")
    heads = sorted(measured)
    labels = {head: (records[head].source, frozenset(records[head].experts)) for head in heads}
    by_topic = _strata(heads, ((labels[head], records[head].subject) for head in heads))
    by_label = _strata(heads, (labels[head] for head in heads))
    for stratum in by_topic:
        _balance(stratum, chosen, records, seed, least_of_few=0)
    for stratum in by_label:
        _balance(stratum, chosen, records, seed, least_of_few=1)
    splits = tuple(chosen[head] for head in family)
    apart = sum(splits[pair.first] != splits[pair.second] for pair in pairs)
    return Assignment(splits, apart, limit)


def position(words: Sequence[str], seed: int) -> float:
    """A place in [0, 1) that depends on the words and the seed only."""
    digest = hashlib.sha256(f"{seed} {' '.join(words)}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _split_at(place: float) -> Split:
    border = 0.0
    for split in SPLITS[:-1]:
        border += RATIOS[split]
        if place < border:
            return split
    return SPLITS[-1]


# Families


def largest_family(count: int) -> int:
    """How large a family may grow: thousands of questions from one template must not all go to one split.

    Between 5 and 50, about a fortieth of the data; it changes only when the number of records doubles.
    """
    return min(50, max(5, (1 << count.bit_length()) // 40))


def families(count: int, pairs: Iterable[Pair], limit: int) -> list[int]:
    """The head (smallest index) of each record's family. Beyond ``limit`` only the same wording joins.

    Records are taken in order, each joining its most similar predecessors first: a row at the end of a file joins a
    family that the rows before it have formed.
    """
    head = list(range(count))
    size = [1] * count

    def find(i: int) -> int:
        while head[i] != i:
            head[i] = head[head[i]]
            i = head[i]
        return i

    for pair in sorted(pairs, key=lambda p: (p.second, not p.same_wording, -p.similarity, p.first)):
        first, second = sorted((find(pair.first), find(pair.second)))
        if first != second and (pair.same_wording or size[first] + size[second] <= limit):
            head[second] = first
            size[first] += size[second]
    return [find(i) for i in range(count)]


# Balance


def _strata(heads: Iterable[int], keys: Iterable[Hashable]) -> list[list[int]]:
    strata: defaultdict[Hashable, list[int]] = defaultdict(list)
    for head, key in zip(heads, keys, strict=True):
        strata[key].append(head)
    return list(strata.values())


def _balance(
    stratum: Sequence[int], chosen: dict[int, Split], records: Sequence[Record], seed: int, *, least_of_few: int
) -> None:
    """Give every split at least half of its share of a topic or label.

    Chance alone leaves small topics without a test question. As few families as needed are moved, the last by
    position from the split with the largest surplus, so that another row hardly changes which.
    """
    few = least_of_few if len(stratum) >= _FEWEST_FOR_EACH else 0
    least = {split: max(int(len(stratum) * ratio / 2), few) for split, ratio in RATIOS.items()}
    members: dict[Split, list[int]] = {split: [h for h in stratum if chosen[h] == split] for split in SPLITS}
    for split in SPLITS:
        while len(members[split]) < least[split]:
            donors = [s for s in SPLITS if len(members[s]) > least[s]]
            donor = max(donors, key=lambda s: len(members[s]) - RATIOS[s] * len(stratum))
            moved = max(members[donor], key=lambda h: position(records[h].words, seed))
            members[donor].remove(moved)
            members[split].append(moved)
            chosen[moved] = split
