"""How a question is worded, in words that can be compared.

British and American spelling, contractions, numbers in words, inflections and general synonyms become one form each.
What tells answers apart stays: numbers, names, negations, what is asked for, the tense, and which word stands where.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from expert_router.caching import vocabulary
from expert_router.conversation import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = re.compile(r"""\d+(?:[.,]\d+)*|[a-z]+\d*|[^\W\d_]+|(?<!\w)-(?=\d)|[^\w\s.,;:!?'"()\u2010-\u2026«»-]""")
"""Also signs that are no punctuation: C++ is not C, and -5 not 5."""
_DIGIT = re.compile(r"\d")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}\b)")
_LETTER_A = re.compile(r"(?<=\w )A(?=\W|$)")
_SHORT = 4
"""Letters of a word that has an ending to lose."""
_TEN = 10
_DO = frozenset({"do", "does", "did"})
_JOINS = frozenset({"and", "or", "but", "so"})
"""Before a further thing that is asked; elsewhere "when" and "who" begin a clause, and are words like others."""
LONGEST_PHRASE = 4
QUESTION_WORD = "?"
"""The form of "who" and "what": they have a place among the words, as who did it or whom it was done to."""


@dataclass(frozen=True, slots=True)
class Word:
    """``form`` is what is compared; ``after`` the last preposition, auxiliary or question word to its left."""

    form: str
    text: str
    after: str


@dataclass(frozen=True, slots=True)
class Wording:
    """``asks`` is what the answer has to be; ``tense`` is ``past``, ``present`` or empty where nothing tells it."""

    asks: frozenset[str]
    words: tuple[Word, ...]
    tense: str
    passive: bool

    @property
    def forms(self) -> list[str]:
        return [word.form for word in self.words]


def read_wording(question: str) -> Wording:
    tokens = _numbers(_WORD.findall(_framed(_spelled(question))))
    asks: list[str] = []
    words: list[Word] = []
    before = after = ""
    if tokens and tokens[0] in vocabulary.AUXILIARIES:
        asks.append("whether")
    for form, covered in _merged(tokens):
        first, *more = covered
        if first in vocabulary.ASKED and not more and (not asks or before in _JOINS):
            if first in {"what", "who"} and not asks:
                words.append(Word(QUESTION_WORD, first, after))
            asks.append(first)
            after = first
        elif first == "genitive" and words:
            words[-1] = replace(words[-1], after="of")
        elif more or first not in vocabulary.FREE:
            words.append(Word(form, " ".join(covered), after))
        after = next((token for token in reversed(covered) if token in vocabulary.MARKERS), after)
        before = covered[-1]
    if words and words[0].form == QUESTION_WORD:
        if tokens[-1] == "by":  # "who was he beaten by?"
            words[0] = replace(words[0], after="by")
        elif tokens[1:2] and tokens[1] in _DO:  # "what did he say?"
            words.append(words.pop(0))
    passive = "by" in tokens and not vocabulary.BE.isdisjoint(tokens)
    return Wording(frozenset(asks or ["what"]), tuple(words), _tense(tokens), passive)


def form_of(phrase: str) -> str:
    """The one form of a word, or of a phrase joined by underscores."""
    stems = tuple(map(stem_of, phrase.split("_")))
    return _forms().get(stems, "_".join(stems))


def _merged(tokens: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The form of each word, or of each phrase that has one, with the tokens that it covers."""
    stems = [stem_of(token) for token in tokens]
    place = 0
    while place < len(stems):
        for length in range(min(LONGEST_PHRASE, len(stems) - place), 0, -1):
            form = _forms().get(tuple(stems[place : place + length]))
            if form is not None or length == 1:
                yield form or stems[place], tokens[place : place + length]
                place += length
                break


@cache
def _forms() -> dict[tuple[str, ...], str]:
    return {tuple(map(stem_of, entry)): "_".join(map(stem_of, line[0])) for line in vocabulary.SAME for entry in line}


@lru_cache(maxsize=10_000)
def stem_of(word: str) -> str:
    """Light: plurals, the past, -ing, -ly and a last e go."""
    word = vocabulary.IRREGULAR.get(word, word)
    if word in vocabulary.AS_THEY_ARE or _DIGIT.search(word) or len(word) < _SHORT:
        return word
    for suffix, put in (("sses", "ss"), ("ies", "y"), ("ied", "y"), ("eed", "ee")):
        if word.endswith(suffix):
            return word[: -len(suffix)] + put
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in ("ing", "ed", "ly"):
        rest = word.removesuffix(suffix)
        if (
            rest != word and len(rest) >= _SHORT - (suffix != "ly") and re.search("[aeiouy]", rest)
        ):  # "spring", "red", "early"
            word = rest
            break
    if len(word) >= _SHORT and word[-1] == word[-2] and word[-1] not in "aeious":
        word = word[:-1]
    return word[:-1] if word.endswith("e") and len(word) >= _SHORT else word


def _spelled(question: str) -> str:
    """Lower case without accents and contractions, American where Britain and America differ."""
    text = plain(question).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = _LETTER_A.sub("lettera", re.sub(r"\bUS\b", "USA", text))
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = _GROUPED.sub("", text)
    for pattern, put in vocabulary.SPELLING:
        text = pattern.sub(put, text)
    return text


def _framed(text: str) -> str:
    for pattern, put in vocabulary.FRAMES:
        text = pattern.sub(put, text)
    return text


def _numbers(tokens: list[str]) -> list[str]:
    """Numbers in words as digits: "twenty four" is 24."""
    read: list[str] = []
    for token in tokens:
        value = vocabulary.NUMBERS.get(token)
        last = int(read[-1]) if read and read[-1].isdecimal() else None
        if value is None:
            read.append(token)
        elif last is not None and value < _TEN and last in range(2 * _TEN, 100, _TEN):
            read[-1] = str(last + value)
        elif last is not None and value > _TEN**2 - 1:
            read[-1] = str(last * value)
        else:
            read.append(str(value))
    return read


def _tense(tokens: list[str]) -> str:
    for before, token in pairwise(["", *tokens]):
        if before != "to" and token in vocabulary.PAST | vocabulary.PRESENT:
            return "past" if token in vocabulary.PAST else "present"
    past = any(token in vocabulary.PAST_FORMS or re.fullmatch(r"[a-z]{3,}ed", token) for token in tokens)
    if past:
        return "past"
    return "present" if tokens[:1] in (["who"], ["what"]) and any(token.endswith("s") for token in tokens) else ""
