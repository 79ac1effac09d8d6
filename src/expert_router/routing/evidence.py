"""What a question's words alone say: for each expert, how much each word speaks for its field.

The log ratio of a word's rates inside and outside the field, smoothed: the weights of multinomial naive Bayes (Manning,
Raghavan and Schütze, Introduction to Information Retrieval, 2008, section 13.2). Names that a sentence encoder has
never met ("catathrenia", "Facel Vega") count here from their first example on.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9']+")
SMOOTHING = 0.5
"""So much is added to every word's count."""


@dataclass(frozen=True, slots=True)
class WordEvidence:
    """``weights_EV``: a row per expert, a column per word of ``vocabulary``; ``prior_E``: the experts' log odds."""

    vocabulary: tuple[str, ...]
    weights_EV: NDArray[np.float32]
    prior_E: NDArray[np.float32]
    _column: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_column", {word: column for column, word in enumerate(self.vocabulary)})

    def weights_of(self, text: str) -> NDArray[np.float32]:
        """Shape (E, words): the weight of each known word of the text, repeated as it is."""
        columns = [self._column[word] for word in words_of(text) if word in self._column]
        return np.asarray(self.weights_EV[:, columns], dtype=np.float32)

    def log_odds(self, text: str) -> NDArray[np.float32]:
        """Shape (E,): naive Bayes' log odds that the text needs each expert."""
        return np.asarray(self.prior_E + self.weights_of(text).sum(axis=1), dtype=np.float32)

    def strongest(self, text: str) -> NDArray[np.float32]:
        """Shape (E,): the weight of the word that speaks most for each expert, at least 0."""
        return np.asarray(self.weights_of(text).max(axis=1, initial=0.0), dtype=np.float32)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def strongest_word(weights: Mapping[str, float], text: str) -> float:
    """The largest weight that a word of the text has; 0 for words without one."""
    return max((weights.get(word, 0.0) for word in words_of(text)), default=0.0)


def fit_evidence(examples: Iterable[tuple[str, frozenset[str]]], experts: Sequence[str]) -> WordEvidence:
    """``examples`` are pairs of a question and the experts it needs (none: an empty set)."""
    pairs = [(words_of(text), needed) for text, needed in examples]
    everything = Counter(word for words, _ in pairs for word in words)
    vocabulary = tuple(sorted(everything))
    counts_V = np.array([everything[word] for word in vocabulary], dtype=np.float64)
    weights, priors = [], []
    for expert in experts:
        inside = Counter(word for words, needed in pairs if expert in needed for word in words)
        inside_V = np.array([inside[word] for word in vocabulary], dtype=np.float64)
        weights.append(_log_rates(inside_V) - _log_rates(counts_V - inside_V))
        needed_by = sum(expert in needed for _, needed in pairs)
        priors.append(np.log((needed_by + 1) / (len(pairs) - needed_by + 1)))
    shape = (len(experts), len(vocabulary))
    return WordEvidence(vocabulary, np.array(weights, np.float32).reshape(shape), np.array(priors, np.float32))


def _log_rates(counts_V: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log((counts_V + SMOOTHING) / (counts_V.sum() + SMOOTHING * max(1, len(counts_V)))))
