"""Cleaning: normalise the text of a row, check it, and find the questions that say the same thing.

Two questions are compared at three strengths:

- *equal*: the same words in the same order, whatever their case, accents and punctuation;
- *same wording*: they differ only in filler words, endings, compounds, a typing error or the order of words. One of
  two such questions is removed when both ask for the same expert and their keys agree;
- *similar*: they share most of their letters or words. Both stay, but ``split`` keeps them together.

A number or a distinguishing word ("Model T", "Model A") makes a different question, however alike the rest is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from expert_router.data.sources import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

LONGEST = {"question": 2_000, "answer": 20_000, "key": 500, "subject": 200}
"""Characters; beyond them something went wrong when the file was made."""

SIMILAR_LETTERS = 0.6
"""Jaccard similarity of the letter trigrams of the content words."""
SIMILAR_WORDS = 0.7
"""Jaccard similarity of all words."""


class Track(Protocol):
    """Shows progress: yields the items unchanged."""

    def __call__(self, items: Sequence[T], what: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], what: str) -> Iterable[T]:  # noqa: ARG001 - the Track that shows nothing
    return items


@dataclass(frozen=True, slots=True)
class Record:
    """One question with what is known of it. ``experts`` is the label: empty when no expert should answer.

    ``answered`` records have an answer, a key and, as ``subject``, a topic.

    ``content`` is the raw row. ``decides`` is true where the label was given in sight of all domains, so that it wins
    over another file's.
    """

    file: str
    line: int
    content: str
    source: str
    question: str
    experts: tuple[str, ...]
    answer: str = ""
    key: str = ""
    subject: str = ""
    trap: str = ""
    answered: bool = False
    decides: bool = False
    words: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The question's words as they are compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", words_of(self.question))

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def reject(self, reason: str) -> Rejected:
        return Rejected(self.file, self.line, reason, self.content)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A record that was removed for an earlier one. ``kind`` is "equal" or "same wording"."""

    record: Record
    kept: Record
    kind: str


class Pair(NamedTuple):
    """Two similar records by their index, the smaller first; ``similarity`` is in [0, 1]."""

    first: int
    second: int
    similarity: float
    same_wording: bool


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What stays, the similar ``pairs`` in it (indices into ``records``), and all that does not stay."""

    records: tuple[Record, ...]
    pairs: tuple[Pair, ...]
    duplicates: tuple[Duplicate, ...]
    rejected: tuple[Rejected, ...]


def clean(records: Sequence[Record], track: Track = untracked) -> Cleaned:
    """Settle conflicts and remove duplicates. The first of several equal records stays, so the order matters."""
    consistent, conflicts = settle_conflicts(records)
    distinct, equal, contradictions = remove_equal(consistent)
    pairs = similar_pairs([record.words for record in distinct], track)
    kept, near = remove_same_wording(distinct, pairs)
    position = {old: new for new, old in enumerate(kept)}
    remaining = (
        Pair(position[pair.first], position[pair.second], pair.similarity, pair.same_wording)
        for pair in pairs
        if pair.first in position and pair.second in position
    )
    return Cleaned(
        records=tuple(distinct[index] for index in kept),
        pairs=tuple(remaining),
        duplicates=(*equal, *near),
        rejected=(*conflicts, *contradictions),
    )


# One row


_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ud800-\udfff]"
)
_SPACE = re.compile(r"\s+")
_SPACE_IN_LINE = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r" ?\n ?(?:\n ?)+")


def normalise(text: str, *, keep_lines: bool = False) -> str:
    """NFC, no control or invisible characters, single spaces. Case and spelling stay as the user wrote them.

    ``keep_lines`` keeps line breaks, for answers with paragraphs or lists.
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    if not keep_lines:
        return _SPACE.sub(" ", text).strip()
    text = _SPACE_IN_LINE.sub(" ", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", text).replace(" \n", "\n").replace("\n ", "\n").strip()


def normalise_key(key: str) -> str:
    return "|".join(part for part in (normalise(part) for part in key.split("|")) if part)


def problem_with(record: Record, known: Sequence[str]) -> str | None:
    """Why a record cannot be used, or ``None``. ``known`` are the names of the experts."""
    return _problem_with_text(record) or _problem_with_label(record, known)


def _problem_with_text(record: Record) -> str | None:
    needed = ("question", "answer", "key") if record.answered else ("question",)
    if empty := [name for name in needed if not getattr(record, name)]:
        return f"the {' and the '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty"
    for name, limit in LONGEST.items():
        if (length := len(getattr(record, name))) > limit:
            return f"the {name} has {length:,} characters, more than {limit:,}"
    if not record.words:
        return "the question has no letter or digit"
    if record.answered and not _key_occurs(record.key, record.answer):
        return f"no alternative of the key {record.key!r} occurs in the answer"
    return None


def _problem_with_label(record: Record, known: Sequence[str]) -> str | None:
    if record.decides and not record.experts:
        return "no expert is named"
    for name in (*record.experts, *([record.trap] if record.trap else [])):
        if name not in known:
            return f"there is no expert {name!r}; known: {', '.join(known)}"
    return None


def _key_occurs(key: str, answer: str) -> bool:
    folded = _fold(answer)
    return any(_fold(alternative) in folded for alternative in key.split("|"))


# Equal questions


def settle_conflicts(records: Sequence[Record]) -> tuple[list[Record], list[Rejected]]:
    """Reject equal questions with different labels: nobody can say which label is right.

    Where exactly one of the labels comes from a file that decides, it stays and only the others go.
    """
    rejected: dict[int, Rejected] = {}
    for group in _equal_groups(records):
        labels = {_label(records[i]) for i in group}
        deciding = {_label(records[i]) for i in group if records[i].decides}
        winners = deciding if len(deciding) == 1 else set()
        for i in group if len(labels) > 1 else ():
            if _label(records[i]) not in winners:
                rivals = winners or labels - {_label(records[i])}
                rejected[i] = _conflict(records[i], next(records[j] for j in group if _label(records[j]) in rivals))
    return [r for i, r in enumerate(records) if i not in rejected], [rejected[i] for i in sorted(rejected)]


def _conflict(record: Record, rival: Record) -> Rejected:
    mine, other = ("|".join(r.experts) or "none" for r in (record, rival))
    return record.reject(f"conflict: the same question is labelled {mine} here and {other} at {rival.place}")


def remove_equal(records: Sequence[Record]) -> tuple[list[Record], list[Duplicate], list[Rejected]]:
    """Keep the first of equal questions. A later one with a contrary key is rejected: somebody must look at it."""
    duplicates: dict[int, Duplicate] = {}
    rejected: dict[int, Rejected] = {}
    for first, *others in _equal_groups(records):
        kept = records[first]
        for i in others:
            if _keys_disagree(records[i], kept):
                rejected[i] = records[i].reject(f"the same question has another key, {kept.key!r}, at {kept.place}")
            else:
                duplicates[i] = Duplicate(records[i], kept, "equal")
    distinct = [r for i, r in enumerate(records) if i not in duplicates and i not in rejected]
    return distinct, [duplicates[i] for i in sorted(duplicates)], [rejected[i] for i in sorted(rejected)]


def _equal_groups(records: Sequence[Record]) -> list[list[int]]:
    """Indices of equal questions, for those that occur more than once."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record.words, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _label(record: Record) -> frozenset[str]:
    return frozenset(record.experts)


def _keys_disagree(a: Record, b: Record) -> bool:
    if not (a.answered and b.answered):
        return False
    share = set(_fold(a.key).split("|")) & set(_fold(b.key).split("|"))
    return not share and not (_key_occurs(a.key, b.answer) and _key_occurs(b.key, a.answer))


# The same wording


def remove_same_wording(records: Sequence[Record], pairs: Iterable[Pair]) -> tuple[list[int], list[Duplicate]]:
    """Indices of the records that stay, and the ones removed for an earlier one that stays."""
    earlier: dict[int, list[int]] = {}
    for pair in pairs:
        if pair.same_wording:
            earlier.setdefault(pair.second, []).append(pair.first)
    removed: dict[int, Duplicate] = {}
    for i in sorted(earlier):
        for j in sorted(earlier[i]):
            if j not in removed and _says_the_same(records[i], records[j]):
                removed[i] = Duplicate(records[i], records[j], "same wording")
                break
    return [i for i in range(len(records)) if i not in removed], list(removed.values())


def _says_the_same(a: Record, b: Record) -> bool:
    """Of two records with the same wording. Without answers to compare, another order is another question.

    "Does memory affect learning" is not "does learning affect memory".
    """
    if _label(a) != _label(b) or _keys_disagree(a, b):
        return False
    return (a.answered and b.answered) or Wording.of(a.words).is_same_in_order(Wording.of(b.words))


_FILLER = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those there it its i me my you s what which and or
        is are was were be been am do does did has have had can could would should will
        of in on at to for by with as about please tell explain describe define
        """,
    )
)
"""Words that do not tell two questions apart. Question words other than what and which do: who, when, how many."""

_ENDING = re.compile(r"(?<=\w{4})(?:ing|ed|es|e|d)$|(?<=\w{3})s$")
_SHORTEST_MISSPELT = 6


@dataclass(frozen=True, slots=True)
class Wording:
    """The words of a question without filler (all of them when there is nothing else), ready to be compared."""

    words: tuple[str, ...]
    joined: str
    sorted: str

    @classmethod
    def of(cls, words: Sequence[str]) -> Wording:
        content = tuple(word for word in words if word not in _FILLER) or tuple(words)
        return cls(content, "".join(content), " ".join(sorted(content)))

    def is_same(self, other: Wording) -> bool:
        """Whether two questions differ only in filler, endings, compounds, one letter of long words, or order."""
        return self.sorted == other.sorted or self.is_same_in_order(other)

    def is_same_in_order(self, other: Wording) -> bool:
        if self.joined == other.joined:
            return True
        return len(self.words) == len(other.words) and all(map(_same_word, self.words, other.words))


def _same_word(a: str, b: str) -> bool:
    if a == b:
        return True
    if not (a.isalpha() and b.isalpha()):
        return False
    return _ENDING.sub("", a) == _ENDING.sub("", b) or _misspelt(a, b)


def _misspelt(a: str, b: str) -> bool:
    """One letter added, left out, replaced or swapped with the next, not at the start: Norris is not Morris."""
    if min(len(a), len(b)) < _SHORTEST_MISSPELT or a[0] != b[0]:
        return False
    start = _shared_start(a, b)
    a, b = a[start:][::-1], b[start:][::-1]
    end = _shared_start(a, b)
    a, b = a[end:], b[end:]
    return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])  # noqa: PLR2004 - two letters swapped


def _shared_start(a: str, b: str) -> int:
    """The length of the text with which both begin."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


# Words


_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:\+\+|#)?")
_ACCENT = re.compile(r"[\u0300-\u036f]")  # of Latin, Greek and Cyrillic; other scripts' marks are letters
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "-"})


def _fold(text: str) -> str:
    """For comparing only: no case, no accents, no typographic variants, single spaces."""
    if not text.isascii():
        text = _ACCENT.sub("", unicodedata.normalize("NFKD", text.translate(_PLAIN)))
    return _SPACE.sub(" ", text.casefold())


def words_of(question: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_fold(question).replace("'", "")))


# Similar questions


_HASHES = 128
_BAND = 4
"""Hashes that must agree for two questions to be compared: at similarity 0.6, one of 32 bands does in 99 % of cases."""
_CROWD = 16
_CROWD_NEIGHBOURS = 2
"""Where more questions than a crowd agree, they share a template: each is compared with the next in the alphabet only.

Questions that are closer than their template also agree in bands of which the template is no part.
"""
_DOUBT = 0.2
"""Below the threshold by this much, the estimate from 128 hashes is not worth an exact comparison: 4 deviations."""
_CHUNK = 65_536


def similar_pairs(questions: Sequence[Sequence[str]], track: Track = untracked) -> list[Pair]:
    """All pairs of similar questions, given by their words, ordered by index; found by MinHash, confirmed exactly.

    Takes time in proportion to the number of questions, also where thousands follow one template.
    """
    wordings = [Wording.of(words) for words in questions]
    ranks = _ranks([wording.joined for wording in wordings])
    similarity: dict[tuple[int, int], float] = {}
    trigrams = [frozenset(chain.from_iterable(map(_trigrams, wording.words))) for wording in wordings]
    words = [frozenset(zlib.crc32(word.encode()) for word in words) for words in questions]
    for sets, threshold in ((trigrams, SIMILAR_LETTERS), (words, SIMILAR_WORDS)):
        for pair in _candidates(_signatures(sets), ranks, threshold, track):
            jaccard = _jaccard(*map(sets.__getitem__, pair))
            if jaccard >= threshold and jaccard > similarity.get(pair, 0.0):
                similarity[pair] = jaccard
    return [Pair(i, j, similarity[i, j], wordings[i].is_same(wordings[j])) for i, j in sorted(similarity)]


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _ranks(texts: Sequence[str]) -> NDArray[np.intp]:
    """Each text's place in the alphabet."""
    ranks = np.empty(len(texts), dtype=np.intp)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return ranks


@lru_cache(maxsize=1 << 16)
def _trigrams(word: str) -> tuple[int, ...]:
    padded = f" {word} "
    return tuple(zlib.crc32(padded[i : i + 3].encode()) for i in range(len(padded) - 2))


def _constants(name: str, count: int) -> NDArray[np.uint64]:
    """Fixed odd 64-bit numbers: the same on every machine and with every release of numpy."""
    digests = (hashlib.sha256(f"{name} {i}".encode()).digest()[:8] for i in range(count))
    return np.array([int.from_bytes(digest, "little") | 1 for digest in digests], dtype=np.uint64)


def _signatures(sets: Sequence[frozenset[int]]) -> NDArray[np.uint32]:
    """MinHash signatures, one row per set: the share of equal columns estimates the Jaccard similarity."""
    flat = np.fromiter(chain.from_iterable(sets), dtype=np.uint64)
    starts = np.cumsum([0, *map(len, sets)])[:-1]
    signatures = np.empty((len(sets), _HASHES), dtype=np.uint32)
    factors, offsets = _constants("factor", _HASHES), _constants("offset", _HASHES)
    for column in range(_HASHES):
        hashed = (flat * factors[column] + offsets[column]) >> np.uint64(32)
        signatures[:, column] = np.minimum.reduceat(hashed, starts)
    return signatures


def _candidates(
    signatures: NDArray[np.uint32], ranks: NDArray[np.intp], threshold: float, track: Track
) -> Iterable[tuple[int, int]]:
    """Pairs of indices, the smaller first, that agree in a band and by all hashes may reach the threshold."""
    count = len(signatures)
    factors = _constants("band", _BAND)
    codes = np.empty(0, dtype=np.int64)
    for start in track(range(0, _HASHES, _BAND), "comparing"):
        band = (signatures[:, start : start + _BAND].astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
        codes = _distinct(np.concatenate([codes, *_neighbours(band, ranks)]))
    for begin in range(0, len(codes), _CHUNK):
        first, second = np.divmod(codes[begin : begin + _CHUNK], count)
        agreeing = (signatures[first] == signatures[second]).mean(axis=1)
        likely = agreeing >= threshold - _DOUBT
        yield from zip(first[likely].tolist(), second[likely].tolist(), strict=True)


def _neighbours(band: NDArray[np.uint64], ranks: NDArray[np.intp]) -> Iterable[NDArray[np.int64]]:
    """Pairs with an equal value, coded as smaller index x count + larger index."""
    count = len(band)
    arranged = np.lexsort((ranks, band))
    values = band[arranged]
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    crowded = sizes[inverse] > _CROWD
    for distance in range(1, min(_CROWD, count)):
        equal = values[distance:] == values[:-distance]
        if distance > _CROWD_NEIGHBOURS:
            equal &= ~crowded[distance:]
        a, b = arranged[:-distance][equal], arranged[distance:][equal]
        yield np.minimum(a, b) * count + np.maximum(a, b)


def _distinct(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, each once. ``np.unique`` hashes first, which takes minutes on millions of codes."""
    codes = np.sort(codes)
    return codes[np.concatenate([[True], codes[1:] != codes[:-1]])] if len(codes) else codes
