"""How close an answer is to a reference, by words, by letters and by meaning: from 0 to 1, 1 is the same.

Everything is computed here, nothing is fetched: rouge-score, sacrebleu, and the sentence encoder that is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.ports import TextEncoder

ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[^\W_]+")


class Words:
    """The tokenizer for rouge-score: words of any alphabet, whatever their case; its own knows a to z alone."""

    def __init__(self, left_out: frozenset[str] = frozenset()) -> None:
        self._left_out = left_out

    def tokenize(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text.casefold()) if word not in self._left_out]


class TextMetrics:
    """Measures answers; of several references the closest counts.

    Token F1 is the harmonic mean of the shares of common words, articles left out (Rajpurkar et al. 2016); ROUGE-L the
    same of the longest common subsequence (Lin 2004); chrF of letter sequences (Popović 2015).
    """

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._words = RougeScorer(["rouge1"], tokenizer=Words(ARTICLES))
        self._sequence = RougeScorer(["rougeL"], tokenizer=Words())
        self._letters = sacrebleu.CHRF()
        self._encoder = encoder

    def token_f1(self, answer: str, references: Sequence[str]) -> float:
        return float(self._words.score_multi(references, answer)["rouge1"].fmeasure)

    def rouge_l(self, answer: str, references: Sequence[str]) -> float:
        return float(self._sequence.score_multi(references, answer)["rougeL"].fmeasure)

    def chrf(self, answer: str, references: Sequence[str]) -> float:
        return float(self._letters.sentence_score(answer, list(references)).score) / 100

    def similarity(self, answer: str, references: Sequence[str]) -> float | None:
        """The cosine of the embeddings, which reads about a hundred words; ``None`` without an encoder."""
        if self._encoder is None:
            return None
        vector_D = self._encoder.encode(answer)
        return max(float(vector_D @ self._encoder.encode(reference)) for reference in references)
