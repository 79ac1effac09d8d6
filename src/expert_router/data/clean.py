"""Cleaning: normalise the text of a row, check it, and find the questions that say the same thing.

Two questions are compared at three strengths:

- *equal*: the same words in the same order, whatever their case, accents and punctuation;
- *same wording*: they differ only in filler words, endings, compounds, a typing error or the order of words. One of
  two such questions is removed when both ask for the same expert and their keys agree;
- *similar*: they share most of their letters or words. Both stay; ``similar`` finds them, ``split`` keeps them in one.

A number or a distinguishing word ("Model T", "Model A") makes a different question, however alike the rest is.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_router.data.sources import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST = {"question": 2_000, "answer": 20_000, "key": 500, "subject": 200}
"""Characters; beyond them something went wrong when the file was made."""


@dataclass(frozen=True, slots=True)
class Record:
    """One question with what is known of it. ``experts`` is the label: empty when no expert should answer.

    ``answered`` records have an answer, a key and, as ``subject``, a topic.

    ``content`` is the raw row. ``decides`` is true where the label was given in sight of all domains, so that it wins
    over another file's. ``teaches`` is true for what only trains: it is not measured on, unless it is similar to a
    question that is.
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
    teaches: bool = False
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
    text = unicodedata.normalize("NFC", text)
    if text.isprintable() and "  " not in text:  # most rows: nothing below would change them
        return text.strip()
    text = _INVISIBLE.sub("", text)
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


def remove_equal(records: Sequence[Record]) -> tuple[list[Record], list[Duplicate], list[Rejected]]:
    """Keep the first of equal questions.

    Equal questions with different labels are all rejected, since nobody can say which label is right; but where
    exactly one of the labels comes from a file that decides, it stays. A later question with a contrary key is
    rejected too: somebody must look at it.
    """
    duplicates: dict[int, Duplicate] = {}
    rejected: dict[int, Rejected] = {}
    for group in _equal_groups(records):
        rejected |= _conflicts(records, group)
        remaining = [i for i in group if i not in rejected]
        for i in remaining[1:]:
            kept = records[remaining[0]]
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


def _conflicts(records: Sequence[Record], group: Sequence[int]) -> dict[int, Rejected]:
    """The records of a group of equal questions whose label another one contradicts."""
    labels = {_label(records[i]) for i in group}
    if len(labels) == 1:
        return {}
    deciding = {_label(records[i]) for i in group if records[i].decides}
    winners = deciding if len(deciding) == 1 else set()
    conflicts: dict[int, Rejected] = {}
    for i in group:
        if (label := _label(records[i])) not in winners:
            rivals = winners or labels - {label}
            conflicts[i] = _conflict(records[i], next(records[j] for j in group if _label(records[j]) in rivals))
    return conflicts


def _conflict(record: Record, rival: Record) -> Rejected:
    mine, other = ("|".join(r.experts) or "none" for r in (record, rival))
    return record.reject(f"conflict: the same question is labelled {mine} here and {other} at {rival.place}")


def _label(record: Record) -> frozenset[str]:
    return frozenset(record.experts)


def _keys_disagree(a: Record, b: Record) -> bool:
    if not (a.answered and b.answered):
        return False
    share = set(_fold(a.key).split("|")) & set(_fold(b.key).split("|"))
    return not share and not (_key_occurs(a.key, b.answer) and _key_occurs(b.key, a.answer))


# The same wording


def remove_same_wording(
    records: Sequence[Record], pairs: Iterable[tuple[int, int]]
) -> tuple[list[int], list[Duplicate]]:
    """Indices of the records that stay, and the ones removed for an earlier one that stays.

    ``pairs`` are the indices of records with the same wording, the smaller first.
    """
    earlier: dict[int, list[int]] = {}
    for first, second in pairs:
        earlier.setdefault(second, []).append(first)
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
    """The words of a question without endings and filler (with it when there is nothing else), ready to compare."""

    words: tuple[str, ...]
    joined: str
    sorted: str

    @classmethod
    def of(cls, words: Sequence[str]) -> Wording:
        content = tuple(_stem(word) for word in words if word not in _FILLER) or tuple(words)
        return cls(content, "".join(content), " ".join(sorted(content)))

    def is_same(self, other: Wording) -> bool:
        """Whether two questions differ only in filler, endings, compounds, one letter of long words, or order."""
        return self.sorted == other.sorted or self.is_same_in_order(other)

    def is_same_in_order(self, other: Wording) -> bool:
        if self.joined == other.joined:
            return True
        return len(self.words) == len(other.words) and all(map(_same_word, self.words, other.words))


def _stem(word: str) -> str:
    return _ENDING.sub("", word) if word.isalpha() else word


def _same_word(a: str, b: str) -> bool:
    return a == b or (a.isalpha() and b.isalpha() and _misspelt(a, b))


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
    return " ".join(text.casefold().split())


def words_of(question: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_fold(question).replace("'", "")))
