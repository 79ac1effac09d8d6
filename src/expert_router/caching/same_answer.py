"""Would one answer serve both questions? Only where nothing that could tell them apart is left unexplained.

Vectors cannot say it: "before the war" and "after the war" are closer to each other than most paraphrases. So the
words themselves are compared (``wording``): what is asked for, the tense, and every word that says something must have
its counterpart, in a place that means the same. Whatever is in doubt is another question.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from expert_router.caching import vocabulary
from expert_router.caching.wording import QUESTION_WORD, form_of, read_wording

if TYPE_CHECKING:
    from expert_router.caching.wording import Word, Wording

_ALSO_WHEN = (frozenset({"when", "inyear"}), frozenset({"when", "ondate"}))
_INSERTABLE = frozenset(map(form_of, vocabulary.INSERTABLE))
_ADJUNCT = frozenset(["in", "on", "at", "for", "during", "of", "with", "about", "among", "within"])
_ACTIVE = frozenset(["do", "does", "did", "can", "could", "will", "would", "may", "might", "to", "has", "have", "had"])


class _Match(NamedTuple):
    """A word of the one question and its counterpart, with their places."""

    one: Word
    other: Word
    place: int
    other_place: int


def same_answer(question: str, other: str) -> bool:
    return not differences(read_wording(question), read_wording(other))


def differences(one: Wording, other: Wording) -> list[str]:
    """Why an answer to the one may not be an answer to the other; empty where nothing speaks against it."""
    found = []
    if one.asks != other.asks and not (
        len(one.asks) == len(other.asks) and frozenset(one.asks ^ other.asks) in _ALSO_WHEN
    ):
        found.append(f"asks {'+'.join(sorted(one.asks))} / {'+'.join(sorted(other.asks))}")
    alone, other_alone = _unmatched(one, other), _unmatched(other, one)
    if alone or other_alone or not {*one.forms} - {QUESTION_WORD}:  # of "what is it?" nothing can be compared
        found.append(f"words {' '.join(alone)} / {' '.join(other_alone)}")
    if one.tense and other.tense and one.tense != other.tense:
        found.append(f"tense {one.tense} / {other.tense}")
    if not found and (moved := _moved(one, other)):
        found.append(f"order {' '.join(moved)}")
    return found


def _unmatched(one: Wording, other: Wording) -> list[str]:
    left = Counter(one.forms) - Counter(other.forms)
    return sorted(form for form in left.elements() if form not in _INSERTABLE and form != QUESTION_WORD)


def _moved(one: Wording, other: Wording) -> list[str]:
    """Words that do other things in the other question: who buys is bought, what causes is caused."""
    matches = _matched(one, other)
    turned: set[int] = set()
    found: list[str] = []
    for n, first in enumerate(matches):
        for m, second in enumerate(matches[n + 1 :], n + 1):
            if first.other_place > second.other_place:
                turned |= {n, m}
                if not (_may_turn(first, second) or _may_turn(second, first)):
                    found.append(f"{first.one.form}-{second.one.form}")
    by_agent = one.passive or other.passive
    for n, match in enumerate(matches):
        if (
            frozenset((match.one.after, match.other.after)) in vocabulary.OPPOSITE_MARKERS
            and one.passive == other.passive
        ):
            found.append(match.one.form)
        if not by_agent and n not in turned and _voices_differ(match.one, match.other):
            found.append(match.one.form)
    return found


def _matched(one: Wording, other: Wording) -> list[_Match]:
    places: dict[str, list[tuple[int, Word]]] = {}
    for place, word in enumerate(_active(other)):
        places.setdefault(word.form, []).append((place, word))
    matches = []
    for place, word in enumerate(_active(one)):
        if places.get(word.form) and word.form not in vocabulary.AUXILIARIES:
            other_place, counterpart = places[word.form].pop(0)
            matches.append(_Match(word, counterpart, place, other_place))
    return matches


def _active(wording: Wording) -> list[Word]:
    """In the order of the active voice: who something is done by goes first."""
    if not wording.passive:
        return list(wording.words)
    return sorted(wording.words, key=lambda word: word.after != "by")


def _may_turn(moving: _Match, still: _Match) -> bool:
    """Whether a word may go past another without a change of meaning."""
    one, other = moving.one, moving.other
    if one.text.endswith("ly") or _voices_differ(one, other):
        return True
    if one.after == other.after and one.after in _ADJUNCT:  # "in 1936", at the front or at the end
        return True
    if other.after == still.one.after == "and":  # two in a list
        return True
    compound = moving.other_place + 1 == still.other_place and other.after == still.other.after
    turned = moving.place + 1 == still.place and one.after == still.one.after
    return (one.after in _ADJUNCT and compound) or (other.after in _ADJUNCT and turned)


def _voices_differ(one: Word, other: Word) -> bool:
    return (_is_passive(one) and _is_active(other)) or (_is_passive(other) and _is_active(one))


def _is_passive(word: Word) -> bool:
    verb = word.text.split()[0]
    return word.after in vocabulary.BE and (verb.endswith("ed") or verb in vocabulary.PARTICIPLES)


def _is_active(word: Word) -> bool:
    verb = word.text.split()[0]
    return word.after in _ACTIVE or (
        word.after not in vocabulary.BE and (verb.endswith("ed") or verb in vocabulary.PAST_FORMS)
    )
