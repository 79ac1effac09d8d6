"""A router without any weights: it asks which expert's words the question uses.

Multinomial naive Bayes over words, one expert against everything else, fitted at start from the training questions in
milliseconds. It is what the demo and the tests run on, and the floor that any learned router must beat.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[a-z0-9']+")
_SMOOTHING = 0.5


class LexicalRouter:
    """``examples`` are pairs of a question and the experts it needs (none of them: an empty set)."""

    name = "lexical"
    thresholds = Thresholds(accept=0.5, clarify=0.4)

    def __init__(self, experts: Sequence[str], examples: Iterable[tuple[str, frozenset[str]]]) -> None:
        self.experts = tuple(experts)
        pairs = [(_words(text), needed) for text, needed in examples]
        self._evidence = {expert: _Evidence(pairs, expert) for expert in self.experts}

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:  # noqa: ARG002 - reads the question alone
        words = _words(query)
        experts = {expert: evidence.probability(words) for expert, evidence in self._evidence.items()}
        return Scores(experts, math.prod(1.0 - p for p in experts.values()))

    def close(self) -> None:
        """Nothing is held beyond memory."""


class _Evidence:
    """How much each word speaks for one expert, as a log ratio of its rates inside and outside the expert's field."""

    def __init__(self, pairs: Sequence[tuple[list[str], frozenset[str]]], expert: str) -> None:
        inside = Counter(word for words, needed in pairs if expert in needed for word in words)
        outside = Counter(word for words, needed in pairs if expert not in needed for word in words)
        vocabulary = len(inside | outside) or 1
        total_in = inside.total() + _SMOOTHING * vocabulary
        total_out = outside.total() + _SMOOTHING * vocabulary
        self._weight = {
            word: math.log((inside[word] + _SMOOTHING) / total_in) - math.log((outside[word] + _SMOOTHING) / total_out)
            for word in inside | outside
        }
        count_in = sum(expert in needed for _, needed in pairs)
        self._prior = math.log((count_in + 1) / (len(pairs) - count_in + 1))

    def probability(self, words: list[str]) -> float:
        logit = self._prior + sum(self._weight.get(word, 0.0) for word in words)
        return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, logit))))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
