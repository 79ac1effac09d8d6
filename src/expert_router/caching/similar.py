"""Answers to single questions, given again to a question that means the same: nearest first, then word by word.

The router's embedding finds the questions to compare with; whether one has the same answer is ``same_answer``'s to say.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.caching.recording import is_whole
from expert_router.caching.same_answer import differences
from expert_router.caching.wording import read_wording

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from numpy.typing import NDArray

    from expert_router.caching.wording import Wording
    from expert_router.ports import TextEncoder
    from expert_router.types import Chunk, Found

MOST_COMPARED = 20
"""Of the nearest earlier questions; a comparison takes a tenth of a millisecond."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer to an earlier ``question``, with the passages that its numbers name. ``ends`` is its time's end."""

    scope: str
    question: str
    wording: Wording
    found: tuple[Found, ...]
    chunks: tuple[Chunk, ...]
    ends: float


@dataclass(slots=True)
class SimilarCounters:
    """``refused`` are questions near an earlier one, none of which was found to have the same answer."""

    hits: int = 0
    misses: int = 0
    refused: int = 0
    evicted: int = 0


class SimilarAnswers:
    """At most ``max_answers``, each for ``ttl_s``, least recently used out first. Made for one event loop.

    A ``scope`` is all that shapes an answer but the question and what is read for it; answers never leave theirs.
    ``similarity`` is the least cosine of two questions. ``clock`` gives seconds and never goes back.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        similarity: float,
        max_answers: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._similarity = similarity
        self._ttl_s = ttl_s
        self._clock = clock
        self._free = list(range(max_answers))
        self._places: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._kept: list[KeptAnswer | None] = [None] * max_answers
        self._vectors_ND: NDArray[np.float32] | None = None
        self._counters = SimilarCounters()

    async def find(self, scope: str, question: str) -> KeptAnswer | None:
        """The answer to an earlier question that this one repeats in other words.

        The very same question is left to who keeps answers by the letter: its passages are its own.
        """
        vector_D = await asyncio.to_thread(self._encoder.encode, question)
        near = self._near(scope, question, vector_D)
        wording = read_wording(question)
        for kept in near:
            if not differences(wording, kept.wording):
                self._places.move_to_end((scope, kept.question))
                self._counters.hits += 1
                return kept
        self._counters.misses += 1
        self._counters.refused += bool(near)
        return None

    async def keep(self, scope: str, question: str, found: Sequence[Found], chunks: Sequence[Chunk]) -> None:
        """In place of what is there for the question; what is no whole answer is not kept."""
        if not is_whole(chunks):
            return
        vector_D = await asyncio.to_thread(self._encoder.encode, question)
        if (scope, question) in self._places:
            self._drop((scope, question))
        elif not self._free:
            self._drop(next(iter(self._places)))
            self._counters.evicted += 1
        if self._vectors_ND is None:
            self._vectors_ND = np.zeros((len(self._kept), len(vector_D)), dtype=np.float32)
        place = self._free.pop()
        self._places[scope, question] = place
        self._vectors_ND[place] = vector_D
        ends = self._clock() + self._ttl_s
        self._kept[place] = KeptAnswer(scope, question, read_wording(question), tuple(found), tuple(chunks), ends)

    def status(self) -> dict[str, int]:
        return {"questions": len(self._places), **asdict(self._counters)}

    def _near(self, scope: str, question: str, vector_D: NDArray[np.float32]) -> list[KeptAnswer]:
        """The nearest first."""
        if self._vectors_ND is None:
            return []
        cosines_N = self._vectors_ND @ vector_D
        near: list[KeptAnswer] = []
        for place in np.argsort(-cosines_N):
            kept = self._kept[place]
            if cosines_N[place] < self._similarity or len(near) == MOST_COMPARED:
                break
            if kept is None or kept.scope != scope or kept.question == question:
                continue
            if self._clock() >= kept.ends:
                self._drop((scope, kept.question))
            else:
                near.append(kept)
        return near

    def _drop(self, key: tuple[str, str]) -> None:
        place = self._places.pop(key)
        self._kept[place] = None
        self._free.append(place)


async def replayed(kept: KeptAnswer) -> AsyncGenerator[Chunk]:
    """As it was given, piece by piece."""
    for chunk in kept.chunks:
        yield chunk
