"""Answers and decisions as plain objects for JSON: one shape for the API, the commands and files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expert_router.types import Answer, Decision, Timings, Usage


def decision_object(decision: Decision) -> dict[str, Any]:
    """``scores`` are flat: each expert's probability, and ``none``; null when the caller chose."""
    scores = decision.scores
    return {
        "kind": decision.kind,
        "experts": list(decision.experts),
        "scores": scores and {name: round(p, 4) for name, p in {**scores.experts, "none": scores.none}.items()},
        "runner_up": decision.runner_up,
        "reason": decision.reason,
        "router": decision.router,
    }


def timings_object(timings: Timings) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in asdict(timings).items()}


def usage_object(usage: Usage) -> dict[str, int]:
    return {**asdict(usage), "total_tokens": usage.total_tokens}


def answer_object(answer: Answer) -> dict[str, Any]:
    """``experts`` is who answered: experts, ``general``, or nobody when a question was asked back."""
    return {
        "query": answer.query,
        "answer": answer.text,
        "experts": list(answer.answered_by),
        "decision": decision_object(answer.decision),
        "usage": usage_object(answer.usage),
        "timings": timings_object(answer.timings),
    }
