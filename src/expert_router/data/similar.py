"""Finding the questions that are alike, among many: MinHash proposes pairs, an exact comparison confirms them.

What the words of a question are, and when two wordings are the same, is in ``clean``.
"""

from __future__ import annotations

import hashlib
import zlib
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from expert_router.data.clean import Wording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

SIMILAR_LETTERS = 0.6
"""Jaccard similarity of the letter trigrams of the words that are not filler."""
SIMILAR_WORDS = 0.7
"""Jaccard similarity of all words. Questions that reach one of the two are similar."""
_HASHES = 128
_BAND = 4
"""Hashes that must agree for two questions to be compared: at similarity 0.6, one of 32 bands does in 99 % of cases."""
_CROWD = 16
_CROWD_NEIGHBOURS = 2
"""Where more questions than a crowd agree, they share a template: each is compared with the next in the alphabet only.

Questions that are closer than their template also agree in bands of which the template is no part.
"""
_NEAREST = 8
"""Of more than so many similar predecessors, a question is paired with the likeliest: enough to join its family."""
_DOUBT = 0.15
"""Below the threshold by this much, the estimate from 128 hashes is not worth an exact comparison: 3.5 deviations."""
_CHUNK = 65_536


class Track(Protocol):
    """Shows progress: yields the items unchanged."""

    def __call__(self, items: Sequence[T], what: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], what: str) -> Iterable[T]:  # noqa: ARG001 - the Track that shows nothing
    return items


class Pair(NamedTuple):
    """Two similar questions by their index, the smaller first; ``similarity`` is in [0, 1]."""

    first: int
    second: int
    similarity: float
    same_wording: bool


def similar_pairs(questions: Sequence[Sequence[str]], track: Track = untracked) -> list[Pair]:
    """All pairs of similar questions, given by their words, ordered by index; found by MinHash, confirmed exactly.

    Takes time in proportion to the number of questions, also where thousands follow one template.
    """
    if not questions:
        return []
    wordings = [Wording.of(words) for words in questions]
    ranks = _ranks([wording.joined for wording in wordings])
    contents = [wording.words for wording in wordings]
    by_letters = _similar(_Features(contents, _trigrams), SIMILAR_LETTERS, ranks, track)
    by_words = _similar(_Features(questions, _whole), SIMILAR_WORDS, ranks, track)
    return [Pair(i, j, jaccard, wordings[i].is_same(wordings[j])) for i, j, jaccard in _merged(by_letters, by_words)]


class _Similar(NamedTuple):
    """Parallel arrays: indices, the smaller first, and Jaccard similarity."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    jaccard: NDArray[np.float64]


def _similar(features: _Features, threshold: float, ranks: NDArray[np.intp], track: Track) -> _Similar:
    first, second = _candidates(features.signatures(), ranks, threshold, track)
    jaccard = features.jaccard(first, second)
    enough = jaccard >= threshold
    return _Similar(first[enough], second[enough], jaccard[enough])


def _merged(a: _Similar, b: _Similar) -> Iterator[tuple[int, int, float]]:
    """The pairs of both in order, each once with its higher similarity."""
    first, second, jaccard = (np.concatenate(columns) for columns in zip(a, b, strict=True))
    order = np.lexsort((-jaccard, second, first))
    first, second, jaccard = first[order], second[order], jaccard[order]
    new = (np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0)
    return zip(first[new].tolist(), second[new].tolist(), jaccard[new].tolist(), strict=True)


class _Features:
    """What questions are compared by: a set of hashes each, made from every word by ``kind``."""

    def __init__(self, questions: Sequence[Sequence[str]], kind: Callable[[str], tuple[int, ...]]) -> None:
        self._questions = questions
        self._hashes = {word: kind(word) for word in dict.fromkeys(chain.from_iterable(questions))}

    def jaccard(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        sets = {i: self._set(i) for i in np.union1d(first, second).tolist()}
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        return np.fromiter((_jaccard(sets[i], sets[j]) for i, j in pairs), dtype=np.float64, count=len(first))

    def _set(self, i: int) -> frozenset[int]:
        return frozenset(chain.from_iterable(map(self._hashes.__getitem__, self._questions[i])))

    def signatures(self) -> NDArray[np.uint32]:
        """MinHash signatures, one row per question: the share of equal columns estimates the Jaccard similarity.

        The least hash of a question is the least of its words' least hashes, so each word is hashed only once.
        """
        index = {word: i for i, word in enumerate(self._hashes)}
        words = np.fromiter((index[word] for question in self._questions for word in question), dtype=np.intp)
        question_starts = _starts(self._questions)
        hashes = np.fromiter(chain.from_iterable(self._hashes.values()), dtype=np.uint64)
        word_starts = _starts(self._hashes.values())
        signatures = np.empty((len(self._questions), _HASHES), dtype=np.uint32)
        for column, (factor, offset) in enumerate(zip(_constants("factor"), _constants("offset"), strict=True)):
            of_words = np.minimum.reduceat((hashes * factor + offset) >> np.uint64(32), word_starts)
            signatures[:, column] = np.minimum.reduceat(of_words.astype(np.uint32)[words], question_starts)
        return signatures


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _starts(groups: Iterable[Sequence[object]]) -> NDArray[np.intp]:
    """Where each group begins when all are laid end to end."""
    return np.cumsum([0, *map(len, groups)], dtype=np.intp)[:-1]


def _ranks(texts: Sequence[str]) -> NDArray[np.intp]:
    """Each text's place in the alphabet."""
    ranks = np.empty(len(texts), dtype=np.intp)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return ranks


def _whole(word: str) -> tuple[int, ...]:
    return (zlib.crc32(word.encode()),)


def _trigrams(word: str) -> tuple[int, ...]:
    padded = f" {word} "
    return tuple(zlib.crc32(padded[i : i + 3].encode()) for i in range(len(padded) - 2))


def _constants(name: str) -> NDArray[np.uint64]:
    """Fixed odd 64-bit numbers, one per hash: the same on every machine and with every release of numpy."""
    digests = (hashlib.sha256(f"{name} {i}".encode()).digest()[:8] for i in range(_HASHES))
    return np.array([int.from_bytes(digest, "little") | 1 for digest in digests], dtype=np.uint64)


def _candidates(
    signatures: NDArray[np.uint32], ranks: NDArray[np.intp], threshold: float, track: Track
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of indices, the smaller first, that agree in a band and by all hashes may reach the threshold."""
    count = len(signatures)
    factors = _constants("band")[:_BAND]
    codes = np.empty(0, dtype=np.int64)
    for start in track(range(0, _HASHES, _BAND), "comparing"):
        band = (signatures[:, start : start + _BAND].astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
        codes = _distinct(np.concatenate([codes, *_neighbours(band, ranks)]))
    first, second = np.divmod(codes, count)
    agreement = _agreement(signatures, first, second)
    best_first = np.lexsort((first, -agreement, second))
    best_first = best_first[agreement[best_first] >= threshold - _DOUBT]
    first, second = first[best_first], second[best_first]
    nearest = np.arange(len(second)) - np.searchsorted(second, second) < _NEAREST
    return first[nearest], second[nearest]


def _agreement(
    signatures: NDArray[np.uint32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The share of equal hashes of each pair; in parts, since the signatures of all pairs do not fit in memory."""
    agreement = np.empty(len(first))
    for begin in range(0, len(first), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        agreement[part] = np.mean(signatures[first[part]] == signatures[second[part]], axis=1)
    return agreement


def _neighbours(band: NDArray[np.uint64], ranks: NDArray[np.intp]) -> Iterable[NDArray[np.int64]]:
    """Pairs with an equal value, coded as smaller index x count + larger index."""
    arranged = np.lexsort((ranks, band))
    starts = np.flatnonzero(np.diff(band[arranged], prepend=~band[arranged[:1]]))
    sizes = np.diff(starts, append=len(band))
    sizes = np.repeat(sizes, sizes)
    arranged, sizes = arranged[sizes > 1], sizes[sizes > 1]
    values = band[arranged]
    for distance in range(1, min(_CROWD, len(values))):
        equal = values[distance:] == values[:-distance]
        if distance > _CROWD_NEIGHBOURS:
            equal &= sizes[distance:] <= _CROWD
        a, b = arranged[:-distance][equal], arranged[distance:][equal]
        yield np.minimum(a, b) * len(band) + np.maximum(a, b)


def _distinct(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, each once. ``np.unique`` hashes first, which takes minutes on millions of codes."""
    codes = np.sort(codes)
    return codes[np.concatenate([[True], codes[1:] != codes[:-1]])] if len(codes) else codes
