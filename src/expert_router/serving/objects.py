"""Answers and decisions as plain objects for JSON: one shape for the API, the commands and files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.types import (
        Answer,
        AnsweredPart,
        Decision,
        Done,
        Explanation,
        Part,
        Served,
        Sources,
        Timings,
        Usage,
    )


def decision_object(decision: Decision) -> dict[str, Any]:
    """``scores`` are flat: each expert's probability, and ``none``; null when the caller chose.

    ``id``, to send feedback with, is there when the decision was logged.
    """
    scores = decision.scores
    return {
        **({"id": decision.id} if decision.id else {}),
        "kind": decision.kind,
        "experts": list(decision.experts),
        "scores": scores and {name: round(p, 4) for name, p in {**scores.experts, "none": scores.none}.items()},
        "runner_up": decision.runner_up,
        "reason": decision.reason,
        "router": decision.router,
        "prediction_set": list(decision.prediction_set),
        "choices": list(decision.choices),
    }


def explanation_object(explanation: Explanation) -> dict[str, Any]:
    """``nearest`` is null while the examples are being read; weights are changes of log-odds."""
    nearest = explanation.nearest
    return {
        "query": explanation.query,
        "history": list(explanation.history),
        "decision": decision_object(explanation.decision),
        "thresholds": {name: round(value, 4) for name, value in asdict(explanation.thresholds).items()},
        "about": list(explanation.about),
        "words": [
            {**asdict(word), "weights": {name: round(weight, 4) for name, weight in word.weights.items()}}
            for word in explanation.words
        ],
        "words_left_out": explanation.words_left_out,
        "nearest": None
        if nearest is None
        else [{**asdict(example), "cosine": round(example.cosine, 4)} for example in nearest],
    }


def timings_object(timings: Timings) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in asdict(timings).items()}


def usage_object(usage: Usage) -> dict[str, int]:
    return {**asdict(usage), "total_tokens": usage.total_tokens}


def served_object(served: Mapping[str, Served]) -> dict[str, dict[str, str | None]]:
    """By expert: the base model, and the hash of its adapter's weights, null where the base itself answers."""
    return {name: asdict(each) for name, each in served.items()}


def part_objects(parts: Sequence[Part | AnsweredPart]) -> list[dict[str, Any]]:
    """Who is asked what; once answered also where the answer stands in the text, in characters, and what went wrong."""
    return [asdict(part) for part in parts]


def source_objects(sources: Sources) -> list[dict[str, Any]]:
    """One object a passage, in the order of the numbers that the answer names, like [1]."""
    return [
        {
            "expert": sources.expert,
            "number": number,
            "id": found.passage.id,
            "title": found.passage.title,
            "file": found.passage.file,
            "text": found.passage.text,
            "score": round(found.score, 4),
        }
        for number, found in enumerate(sources.found, start=1)
    ]


def all_source_objects(answer: Answer) -> list[dict[str, Any]]:
    """Those of every expert that answered, one after the other."""
    return [source for each in answer.sources for source in source_objects(each)]


def cache_object(answer: Answer | Done) -> dict[str, Any]:
    """Where each expert's answer came from; ``similar_to`` is there when one was made for a question in other words."""
    similar_to = {"similar_to": dict(answer.similar_to)} if answer.similar_to else {}
    return {"cache": dict(answer.cache), **similar_to}


def answer_object(answer: Answer) -> dict[str, Any]:
    """``experts`` is who answered: experts, ``general``, or nobody when a question was asked back."""
    return {
        "query": answer.query,
        "answer": answer.text,
        "experts": list(answer.answered_by),
        "decision": decision_object(answer.decision),
        "served": served_object(answer.served),
        "parts": part_objects(answer.parts),
        "sources": all_source_objects(answer),
        "usage": usage_object(answer.usage),
        "timings": timings_object(answer.timings),
        **cache_object(answer),
    }
