"""The API's objects, as the page reads them: what is not one raises ``ValueError``, ``KeyError`` or ``TypeError``."""

from __future__ import annotations

from dataclasses import fields
from itertools import groupby
from typing import TYPE_CHECKING, Any

from expert_router.types import (
    Decision,
    Explanation,
    Found,
    NearestExample,
    Passage,
    Scores,
    Served,
    Sources,
    Thresholds,
    Timings,
    WordWeight,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def parse_decision(decision: dict[str, Any]) -> Decision:
    return Decision(
        kind=decision["kind"],
        experts=tuple(decision["experts"]),
        scores=_parse_scores(decision["scores"]) if decision.get("scores") else None,
        runner_up=decision.get("runner_up"),
        reason=decision["reason"],
        router=decision.get("router") or "",
        prediction_set=tuple(decision.get("prediction_set") or ()),
        id=decision.get("id"),
    )


def parse_explanation(body: dict[str, Any]) -> Explanation:
    thresholds, nearest = body["thresholds"], body["nearest"]
    return Explanation(
        query=str(body["query"]),
        history=tuple(map(str, body["history"])),
        decision=parse_decision(body["decision"]),
        thresholds=Thresholds(float(thresholds["accept"]), float(thresholds["clarify"])),
        about=tuple(map(str, body["about"])),
        words=tuple(_parse_word(entry) for entry in body["words"]),
        words_left_out=int(body["words_left_out"]),
        nearest=None if nearest is None else tuple(_parse_example(entry) for entry in nearest),
    )


def parse_served(served: Mapping[str, dict[str, Any]]) -> dict[str, Served]:
    return {name: Served(str(each["base"]), each.get("adapter")) for name, each in served.items()}


def parse_sources(entries: Sequence[dict[str, Any]]) -> Iterator[Sources]:
    for expert, group in groupby(entries, key=lambda entry: str(entry["expert"])):
        yield Sources(expert, tuple(_parse_found(entry) for entry in group))


def parse_timings(timings: dict[str, float | None]) -> Timings:
    return Timings(**{field.name: timings.get(field.name) for field in fields(Timings)})


def _parse_scores(scores: dict[str, float]) -> Scores:
    experts = {name: float(score) for name, score in scores.items() if name != "none"}
    return Scores(experts, float(scores.get("none", 0.0)))


def _parse_found(entry: dict[str, Any]) -> Found:
    passage = Passage(str(entry["id"]), str(entry["title"]), str(entry["text"]), str(entry["file"]))
    return Found(passage, float(entry["score"]))


def _parse_word(entry: dict[str, Any]) -> WordWeight:
    weights = {str(name): float(weight) for name, weight in entry["weights"].items()}
    return WordWeight(str(entry["text"]), int(entry["start"]), int(entry["end"]), int(entry["turns_back"]), weights)


def _parse_example(entry: dict[str, Any]) -> NearestExample:
    return NearestExample(str(entry["query"]), tuple(map(str, entry["experts"])), float(entry["cosine"]))
