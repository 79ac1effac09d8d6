"""Why a router says what it says: each word is taken away, and what the router says then is compared (occlusion).

Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (2014), section 4.2, for words (Li, Monroe and
Jurafsky, Understanding Neural Networks through Representation Erasure, 2016). It asks the router alone, so it holds for
any: what is shown is what the router does, not a model of it. Words that say the same thing twice each look lighter
than they are together.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.conversation import content_words
from expert_router.types import GENERAL, Explanation, WordWeight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from expert_router.ports import Router
    from expert_router.routing.policy import Policy
    from expert_router.types import Scores

MOST_WORDS = 32
"""So many words are tried, those first that not any question may have: each costs a look at the router."""
MOST_READ = 400_000
"""Characters that the router reads for them, all looks together: of a very long message fewer words are tried."""
SURELY = 1e-6
"""Probabilities nearer to 0 or 1 are taken for this near: their log-odds would be noise."""
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_LEFT_BEHIND = re.compile(r"\s+(?=[\s?!.,;:]|$)")
"""Spaces that nothing follows any more."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a word stands: its characters, and how many turns before the question."""

    text: str
    start: int
    end: int
    turns_back: int

    @property
    def word(self) -> str:
        return self.text.casefold()


def explain(router: Router, policy: Policy, query: str, history: Sequence[str] = ()) -> Explanation:
    """The decision and the weight of each word, without examples; ``history`` holds earlier user turns, oldest first.

    Blocking: the router scores the question once more for each word.
    """
    scores = router.score(query, history)
    read_with = tuple(history) if history and router.score(query) != scores else ()
    decision = policy.decide(scores, router.name)
    about = decision.choices or decision.experts or (GENERAL,)
    places = list(_places([query, *reversed(read_with)]))
    tried, left_out = _chosen(places, sum(map(len, (query, *read_with))))
    whole = _log_odds(scores, about)
    weights = {word: _weights(router, word, query, read_with, whole) for word in tried}
    shown = {0} | _turns_that_count(places, weights)
    return Explanation(
        query=query,
        history=read_with,
        decision=decision,
        thresholds=policy.thresholds,
        about=about,
        words=tuple(
            WordWeight(place.text, place.start, place.end, place.turns_back, weights[place.word])
            for place in places
            if place.word in weights and place.turns_back in shown
        ),
        words_left_out=left_out,
    )


def without(text: str, word: str) -> str:
    """The text with none of its occurrences of a word, whatever their case."""
    kept = _WORD.sub(lambda match: "" if match[0].casefold() == word.casefold() else match[0], text)
    return _LEFT_BEHIND.sub("", kept).lstrip()


def _places(turns: Iterable[str]) -> Iterator[_Place]:
    """Every word of every turn, the question's first."""
    for turns_back, turn in enumerate(turns):
        for match in _WORD.finditer(turn):
            yield _Place(match[0], match.start(), match.end(), turns_back)


def _chosen(places: Iterable[_Place], characters: int) -> tuple[list[str], int]:
    """The different words to try, and how many are left out."""
    words = list(dict.fromkeys(place.word for place in places))
    room = min(MOST_WORDS, MOST_READ // max(characters, 1))
    if len(words) > room:
        words.sort(key=lambda word: not content_words(word))
    return words[:room], max(0, len(words) - room)


def _weights(
    router: Router, word: str, query: str, history: Sequence[str], whole: Mapping[str, float]
) -> dict[str, float]:
    turns = [without(turn, word) for turn in history]
    said = [turn for turn in turns if _WORD.search(turn)]  # nobody takes a turn to say nothing
    rest = _log_odds(router.score(without(query, word), said), whole)
    return {name: whole[name] - rest[name] for name in whole}


def _turns_that_count(places: Iterable[_Place], weights: Mapping[str, Mapping[str, float]]) -> set[int]:
    """Those with a word that weighs something and that no later turn has: the router need not read all of them."""
    latest: dict[str, int] = {}
    for place in places:
        latest.setdefault(place.word, place.turns_back)
    return {latest[word] for word, each in weights.items() if any(each.values())}


def _log_odds(scores: Scores, names: Iterable[str]) -> dict[str, float]:
    probabilities = {name: scores.none if name == GENERAL else scores.experts[name] for name in names}
    bounded = {name: min(max(p, SURELY), 1 - SURELY) for name, p in probabilities.items()}
    return {name: math.log(p / (1 - p)) for name, p in bounded.items()}
