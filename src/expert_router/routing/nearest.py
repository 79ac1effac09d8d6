"""The training questions most like a question, by the router's own encoder: what it goes on, in words of others.

Exact search: one product with a matrix of a few thousand rows. Reading the questions takes seconds the first time, so
that is a step of its own (``read``), which whoever answers people never waits for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from expert_router.conversation import context, plain
from expert_router.data.labelled import read_labelled
from expert_router.types import NearestExample
from expert_router.vectors import embed_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.ports import TextEncoder

LABEL = "read the examples"


class Examples:
    """``path`` is the file that the router was fitted on; ``folder`` keeps its questions' vectors. Thread-safe.

    ``with_taught`` gives them together with what added experts were taught; reading and closing either is for both.
    """

    def __init__(self, path: Path, encoder: TextEncoder, folder: Path) -> None:
        self._path = path
        self._encoder = encoder
        self._folder = folder
        self._reading = threading.Lock()
        self._closed = threading.Event()
        self._questions: Sequence[LabelledQuestion] = ()
        self._vectors_ND: NDArray[np.float32] | None = None

    def read(self, *, progress: bool = False) -> None:
        """Make ``nearest`` answer, once; a project that has no such file has no examples.

        Raises ``DataError`` when the file is not one of labelled questions, and there are no examples from then on;
        ``NotReadyError`` when it is closed meanwhile. Blocking, seconds the first time.
        """
        with self._reading:
            if self._vectors_ND is not None:
                return
            vectors_ND = np.zeros((0, 0), dtype=np.float32)
            try:
                if self._path.is_file():
                    vectors_ND = self._embedded(progress=progress)
            finally:
                self._vectors_ND = vectors_ND

    def nearest(self, query: str, history: Sequence[str] = (), limit: int = 5) -> tuple[NearestExample, ...] | None:
        """The most similar first; ``None`` until they have been read. ``history`` is what the question is read with."""
        if self._vectors_ND is None:
            return None
        if not len(self._vectors_ND) or limit < 1:
            return ()
        cosines_N = self._vectors_ND @ self._encoder.encode(_read_as(query, history))
        best = np.argsort(-cosines_N, kind="stable")[:limit]
        return tuple(
            NearestExample(self._questions[n].query, tuple(sorted(self._questions[n].experts)), float(cosines_N[n]))
            for n in best
        )

    def with_taught(self, questions: Sequence[LabelledQuestion]) -> Examples | WithTaught:
        return WithTaught(self, questions, self._encoder) if questions else self

    def _embedded(self, *, progress: bool) -> NDArray[np.float32]:
        self._questions = read_labelled(self._path)
        texts = [question.query for question in self._questions]
        stopped = self._closed.is_set
        kept = embed_texts(texts, self._encoder, self._folder, label=LABEL, progress=progress, stopped=stopped)
        return kept.astype(np.float32)

    def close(self) -> None:
        """Whoever reads stops; what has been read by then is kept."""
        self._closed.set()


class WithTaught:
    """``examples``, and a few more that are embedded at once: those that added experts were taught."""

    def __init__(self, examples: Examples, questions: Sequence[LabelledQuestion], encoder: TextEncoder) -> None:
        self._examples = examples
        self._questions = questions
        self._encoder = encoder
        self._vectors_ND = np.stack(list(encoder.encode_all([question.query for question in questions])))

    def read(self, *, progress: bool = False) -> None:
        self._examples.read(progress=progress)

    def nearest(self, query: str, history: Sequence[str] = (), limit: int = 5) -> tuple[NearestExample, ...] | None:
        shipped = self._examples.nearest(query, history, limit)
        if shipped is None or limit < 1:
            return shipped
        cosines_N = self._vectors_ND @ self._encoder.encode(_read_as(query, history))
        taught = (
            NearestExample(question.query, tuple(sorted(question.experts)), float(cosine))
            for question, cosine in zip(self._questions, cosines_N, strict=True)
        )
        return tuple(sorted([*shipped, *taught], key=lambda example: -example.cosine)[:limit])

    def with_taught(self, questions: Sequence[LabelledQuestion]) -> Examples | WithTaught:
        return self._examples.with_taught(questions) if questions else self._examples

    def close(self) -> None:
        self._examples.close()


def _read_as(query: str, history: Sequence[str]) -> str:
    return f"{context(history)} {plain(query)}".strip()
