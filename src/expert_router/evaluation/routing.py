"""How often a router is right, by kind of question, and how long a decision takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.evaluation.intervals import wilson
from expert_router.types import GENERAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.types import Decision


@dataclass(frozen=True, slots=True)
class KindResult:
    kind: str
    count: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.count)


@dataclass(frozen=True, slots=True)
class RoutingReport:
    """``latency_ms``: the 50th, 95th and 99th percentile of a decision. ``decisions`` are in the questions' order.

    ``coverage`` is how often the prediction set holds what the question needs, ``set_size`` how many are in it.
    """

    router: str
    kinds: list[KindResult]
    latency_ms: dict[str, float]
    wrong: list[tuple[LabelledQuestion, Decision]]
    decisions: list[Decision]
    coverage: float
    set_size: float

    @property
    def asked_back(self) -> int:
        return sum(decision.kind == "clarify" for decision in self.decisions)


def exactly(experts: frozenset[str], decision: Decision) -> bool:
    """Whether these experts answer and no other; a question back is wrong."""
    return decision.kind != "clarify" and frozenset(decision.experts) == experts


def outcome(decision: Decision) -> tuple[str, frozenset[str]]:
    """What makes two decisions the same: their kind and their experts."""
    return decision.kind, frozenset(decision.experts)


def covered(example: LabelledQuestion, decision: Decision) -> bool:
    """Whether all that the question needs is in the prediction set."""
    return (example.experts or {GENERAL}) <= set(decision.prediction_set)


def evaluate_routing(
    examples: Sequence[LabelledQuestion], decide: Callable[[str], Decision], router: str
) -> RoutingReport:
    """Right means: exactly the experts needed, no other. A question back counts as wrong."""
    for example in examples[:20]:
        decide(example.query)  # warm caches: the report is of a running system
    seconds: list[float] = []
    tally: dict[str, list[bool]] = {}
    wrong = []
    decisions = []
    for example in examples:
        started = time.perf_counter()
        decision = decide(example.query)
        seconds.append(time.perf_counter() - started)
        decisions.append(decision)
        right = exactly(example.experts, decision)
        tally.setdefault(example.kind, []).append(right)
        if not right:
            wrong.append((example, decision))
    kinds = [KindResult(kind, len(marks), sum(marks)) for kind, marks in sorted(tally.items())]
    coverage = float(np.mean([covered(*pair) for pair in zip(examples, decisions, strict=True)]))
    set_size = float(np.mean([len(decision.prediction_set) for decision in decisions]))
    p50, p95, p99 = (float(v) for v in np.percentile(np.array(seconds) * 1000, [50, 95, 99]))
    return RoutingReport(router, kinds, {"p50": p50, "p95": p95, "p99": p99}, wrong, decisions, coverage, set_size)
