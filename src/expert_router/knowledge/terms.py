"""BM25 over all experts' passages: which words of a question occur together in one passage, and how rare they are.

Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), computed by bm25s.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from expert_router.types import Passage


@contextmanager
def _no_jax() -> Iterator[None]:
    """Nobody finds JAX meanwhile, and then whoever wants it does.

    Where it is installed bm25s computes something with it on import, and JAX then keeps three quarters of a GPU's
    memory for itself: vLLM beside it cannot start. With numpy bm25s computes the same.
    """
    before = {name: module for name, module in sys.modules.items() if name == "jax"}
    sys.modules["jax"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules["jax"]
        sys.modules.update(before)


with _no_jax():
    import bm25s

TITLE_COPIES = 2
"""A word of the title counts more than one of the text."""
_K1, _B = 1.2, 0.75


class TermIndex:
    """``passages`` and ``owner_P`` (the expert's number) are in the order of the scores. Thread-safe."""

    def __init__(self, corpora: Mapping[str, Sequence[Passage]]) -> None:
        self.experts = tuple(corpora)
        self.passages = tuple(passage for expert in self.experts for passage in corpora[expert])
        self.owner_P = np.repeat(np.arange(len(self.experts)), [len(corpora[expert]) for expert in self.experts])
        self._bm25 = bm25s.BM25(k1=_K1, b=_B)
        words = _words_of_all([" ".join([f"{p.title}."] * TITLE_COPIES + [p.text]) for p in self.passages])
        self._has_words = any(words)
        if self._has_words:
            self._bm25.index(words, show_progress=False)

    def passages_of(self, expert: str) -> list[Passage]:
        owner = self.experts.index(expert)
        return [passage for passage, own in zip(self.passages, self.owner_P, strict=True) if own == owner]

    def scores(self, text: str) -> NDArray[np.float32]:
        """Shape (P,), from 0 to about 30."""
        return self._scores(_words_of_all([text])[0])

    def evidence(self, text: str) -> dict[str, float]:
        """For each expert: the score of its best passage per word of the text; about 3 when it holds them all."""
        words = _words_of_all([text])[0]
        scores_P = self._scores(words)
        best = {e: float(scores_P[self.owner_P == n].max(initial=0.0)) for n, e in enumerate(self.experts)}
        per = len(words) + 1  # so that one word alone does not count for all
        return {expert: score / per for expert, score in best.items()}

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        if not words or not self._has_words:
            return np.zeros(len(self.passages), dtype=np.float32)
        return np.asarray(self._bm25.get_scores(words), dtype=np.float32)


def _words_of_all(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(texts, stopwords="en_plus", return_ids=False, show_progress=False)
    return words
