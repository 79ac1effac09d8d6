"""From two experts to a hundred: the router itself, fitted with the intents of a public data set as its experts."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.routing import evaluate_routing
from expert_router.knowledge.terms import TermIndex
from expert_router.routing.embedding import EmbeddingRouter
from expert_router.routing.policy import Policy
from expert_router.training.router import fit_router

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from expert_router.data.intents import IntentData, Labelled
    from expert_router.ports import TextEncoder

COUNTS = (2, 5, 10, 25, 50, 100)
OUTSIDE = 2000
"""So many training questions of other intents are for nobody; of validation and test questions a fifth of that."""
INSIDE_KIND, OUTSIDE_KIND, NEVER_SEEN = "for an expert", "for nobody", "for nobody, of no kind seen"


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """Shares from 0 to 1, seconds without embedding the questions, milliseconds from text to decision.

    ``right``: exactly the one expert answers; ``kept_away``: nobody does, where the question is of another intent, and
    ``kept_away_unseen`` where it is of no kind that was trained; ``None`` without such.
    """

    experts: int
    right: float
    kept_away: float
    kept_away_unseen: float | None
    fit_s: float
    p50_ms: float
    p95_ms: float


def measure_scale(
    data: IntentData, encoder: TextEncoder, coverage: float, *, counts: Sequence[int] = COUNTS, progress: bool = False
) -> list[ScaleResult]:
    """One router a count, each of intents drawn at random, the same every time."""
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    known = RememberingEncoder(encoder)
    results = []
    for count in tqdm(counts, desc="routers", unit="router", disable=None if progress else True):
        names = sorted(rng.sample(data.intents, count))
        train, validation, test = (
            _labelled(rows, names, outside, rng)
            for rows, outside in (
                (data.train, OUTSIDE),
                (data.validation, OUTSIDE // 5),
                (data.test, OUTSIDE // 5),
            )
        )
        list(known.encode_all([question.query for question in [*train, *validation]]))
        started = time.perf_counter()
        artifact = fit_router(train, validation, names, known, TermIndex({}))
        fit_s = time.perf_counter() - started
        router = EmbeddingRouter(encoder, artifact, TermIndex({}), coverage)
        policy = Policy(router.thresholds, {})
        unseen = [LabelledQuestion(question, frozenset(), NEVER_SEEN) for question in data.out_of_scope]
        report = evaluate_routing([*test, *unseen], lambda text: policy.decide(router.score(text)), "embedding")  # noqa: B023
        right = {kind.kind: kind.accuracy for kind in report.kinds}
        results.append(
            ScaleResult(
                count,
                right[INSIDE_KIND],
                right[OUTSIDE_KIND],
                right.get(NEVER_SEEN),
                fit_s,
                report.latency_ms["p50"],
                report.latency_ms["p95"],
            )
        )
    return results


class RememberingEncoder:
    """An encoder that embeds each question once, however many routers are fitted on it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.sha256 = encoder.sha256
        self._encoder = encoder
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def encode(self, text: str) -> NDArray[np.float32]:
        return next(iter(self.encode_all([text])))

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        new = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        self._vectors.update(zip(new, self._encoder.encode_all(new), strict=True))
        return iter([self._vectors[text] for text in texts])


def _labelled(rows: Labelled, names: Sequence[str], outside: int, rng: random.Random) -> list[LabelledQuestion]:
    """All questions of ``names`` and a sample of the others."""
    chosen = frozenset(names)
    others = [question for question, intent in rows if intent not in chosen]
    inside = [LabelledQuestion(question, frozenset([name]), INSIDE_KIND) for question, name in rows if name in chosen]
    sample = rng.sample(others, min(outside, len(others)))
    return inside + [LabelledQuestion(question, frozenset(), OUTSIDE_KIND) for question in sample]
