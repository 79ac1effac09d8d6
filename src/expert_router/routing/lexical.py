"""A router without any weights: it asks which expert's words the question uses.

Naive Bayes, one expert against everything else, fitted at start from the training questions in milliseconds. It is what
the demo and the tests run on, and the floor that any learned router must beat.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from expert_router.routing.evidence import fit_evidence
from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class LexicalRouter:
    """``examples`` are pairs of a question and the experts it needs (none of them: an empty set)."""

    name = version = "lexical"
    thresholds = Thresholds(accept=0.5, clarify=0.4)

    def __init__(self, experts: Sequence[str], examples: Iterable[tuple[str, frozenset[str]]]) -> None:
        self.experts = tuple(experts)
        self._evidence = fit_evidence(examples, self.experts)

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:  # noqa: ARG002 - reads the question alone
        experts = dict(zip(self.experts, map(_sigmoid, self._evidence.log_odds(query).tolist()), strict=True))
        return Scores(experts, math.prod(1.0 - p for p in experts.values()))

    def close(self) -> None:
        """Nothing is held beyond memory."""


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, logit))))
