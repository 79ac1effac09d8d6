"""Find the passages that answer a question: its words (BM25) and its meaning (the router's embedding) together.

Words find names and numbers, the embedding finds what is said otherwise; each alone finds less (docs/log.md). The
question's embedding is the router's own, so retrieval adds one product with the passages' matrix and a lookup of a few
words. The best candidates are then read sentence by sentence, as an answer is often one sentence of a passage; of those
that are found, the closest sentences are their excerpt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_router.conversation import standalone
from expert_router.errors import ConfigError
from expert_router.knowledge.corpus import sentences
from expert_router.types import Found
from expert_router.vectors import embed_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.knowledge.terms import TermIndex
    from expert_router.ports import TextEncoder
    from expert_router.types import Passage

TERM_WEIGHT = 0.02
"""BM25 scores run to about 30, cosines to 1."""
CANDIDATES = 40
EXCERPT_SENTENCES = 2


class KnowledgeIndex:
    """``vectors_SD``: a passage's own vector, then one for each of its sentences, passage after passage.

    Exact search, thread-safe. ``embed_passages`` makes the vectors.
    """

    def __init__(self, terms: TermIndex, vectors_SD: NDArray[np.float16], encoder: TextEncoder) -> None:
        counts_P = np.array([len(texts_of(passage)) for passage in terms.passages], dtype=np.intp)
        if counts_P.sum() != len(vectors_SD):
            raise ConfigError(f"{len(vectors_SD)} vectors do not fit passages with {counts_P.sum()} texts.")
        self._terms = terms
        self._encoder = encoder
        self._vectors_SD = vectors_SD
        self._end_P = np.cumsum(counts_P)
        self._start_P = self._end_P - counts_P
        self._passages_PD = vectors_SD[self._start_P].astype(np.float32)

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:
        """The expert's best passages for a question, best first; ``history`` holds the earlier user turns.

        Empty when the expert has no knowledge.
        """
        if expert not in self._terms.experts:
            return []
        text = standalone(question, history)
        vector_D = self._encoder.encode(text)
        terms_P = TERM_WEIGHT * self._terms.scores(text)
        own_P = np.flatnonzero(self._terms.owner_P == self._terms.experts.index(expert))
        if not len(own_P):
            return []
        rough = self._passages_PD[own_P] @ vector_D + terms_P[own_P]
        candidates = own_P[np.argsort(-rough, kind="stable")[:CANDIDATES]]
        cosines_C = self._best_sentences(candidates, vector_D)
        scores_C = cosines_C + terms_P[candidates]
        best = np.argsort(-scores_C, kind="stable")[:limit]
        return [
            Found(
                self._terms.passages[candidates[n]],
                float(scores_C[n]),
                self._excerpt(candidates[n], vector_D),
                float(cosines_C[n]),
            )
            for n in best
        ]

    def _excerpt(self, passage: int, vector_D: NDArray[np.float32]) -> str:
        said = sentences(self._terms.passages[passage].text)
        cosines = self._vectors_SD[self._start_P[passage] + 1 : self._end_P[passage]].astype(np.float32) @ vector_D
        closest = np.sort(np.argsort(-cosines, kind="stable")[:EXCERPT_SENTENCES])
        return " ".join(said[n] for n in closest)

    def _best_sentences(self, passages_C: NDArray[np.intp], vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape (C,): each passage's closest text, its sentences and the whole."""
        rows = [np.arange(self._start_P[p], self._end_P[p]) for p in passages_C]
        starts = np.cumsum([0, *(len(each) for each in rows[:-1])])
        cosines = self._vectors_SD[np.concatenate(rows)].astype(np.float32) @ vector_D
        return np.asarray(np.maximum.reduceat(cosines, starts), dtype=np.float32)


def embed_passages(
    passages: Sequence[Passage], encoder: TextEncoder, cache: Path, *, progress: bool
) -> NDArray[np.float16]:
    """The vectors for ``KnowledgeIndex``; only texts that ``cache`` does not know are read."""
    texts = [text for passage in passages for text in texts_of(passage)]
    return embed_texts(texts, encoder, cache / "knowledge", label="read the knowledge", progress=progress)


def texts_of(passage: Passage) -> list[str]:
    """What is embedded of a passage: the whole, then its sentences, each under the title that says what it is about."""
    return [whole(passage), *(titled(passage, line) for line in sentences(passage.text))]


def whole(passage: Passage) -> str:
    """All of the passage as it is embedded."""
    return f"{passage.title}. {passage.text}"


def titled(passage: Passage, sentence: str) -> str:
    """A sentence of the passage as it is embedded: a title says whom "he" means."""
    return f"{passage.title}: {sentence}"
