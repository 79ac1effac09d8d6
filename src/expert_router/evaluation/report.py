"""What was measured, for people (Markdown, tables before pictures) and for programs (JSON)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from expert_router.artifacts import write_atomically
from expert_router.evaluation.answers import METRICS
from expert_router.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from expert_router.evaluation.answers import (
        AskedExpert,
        ExpertResult,
        Gate,
        Latency,
        Refusal,
        Scored,
        Together,
        VariantResult,
    )
    from expert_router.evaluation.router_quality import RouterQuality
    from expert_router.evaluation.routing import RoutingReport

MARKDOWN_FILE, JSON_FILE, ANSWERS_FILE = "report.md", "report.json", "answers.jsonl"
NOTHING = "-"
INTERVALS = """\
In brackets are 95 % intervals: Wilson's for a share of the questions, the bootstrap's otherwise. Differences are in
points, and paired: question by question."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``about`` is what was run, in words; ``perplexity`` by expert, of those that were trained."""

    about: dict[str, str]
    notes: list[str]
    router: RoutingReport
    quality: RouterQuality
    experts: list[ExpertResult]
    perplexity: dict[str, Perplexity | None]

    @property
    def gates(self) -> list[tuple[ExpertResult, Gate]]:
        return [(result, result.gate) for result in self.experts if result.gate is not None]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """On the validation questions of the training run, answers alone, with their passages."""

    base: str
    without_adapter: float | None
    with_adapter: float


def write_report(folder: Path, evaluation: Evaluation, pictures: Mapping[str, str]) -> None:
    """``pictures``: the titles by file name; they are beside the report."""
    write_both(folder, as_markdown(evaluation, pictures), as_object(evaluation))


def write_both(folder: Path, markdown: str, content: Mapping[str, Any]) -> None:
    """A report for people and the same for programs."""
    write_atomically(folder / MARKDOWN_FILE, markdown.encode())
    write_atomically(folder / JSON_FILE, (json.dumps(content, indent=2) + "\n").encode())


def write_answers(folder: Path, asked: Iterable[AskedExpert]) -> None:
    """Every answer with its measures, one a line."""
    lines = []
    for each in asked:
        passes = [
            *each.by_variant.items(),
            *((f"{name}, answer withheld", answers) for name, answers in each.withheld.items()),
            *((f"{name}, unanswerable", answers) for name, answers in each.unanswerable.items()),
            *([("auto", each.auto)] if each.auto else []),
        ]
        lines += [_answer_object(name, answer) for name, answers in passes for answer in answers]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(folder / ANSWERS_FILE, text.encode())


def _answer_object(variant: str, answer: Scored) -> dict[str, Any]:
    question = answer.question
    return {
        "question": question.text,
        "expert": question.expert,
        "data": question.data,
        "variant": variant,
        "answer": answer.text,
        "references": question.references,
        "keys": question.keys,
        **answer.metrics,
        "refused": answer.refused,
        "answerable": answer.answerable,
        "answered_by": answer.answered_by,
        "error": answer.error,
    }


def as_object(evaluation: Evaluation) -> dict[str, Any]:
    """The whole report; an estimate is its value, interval and number of questions, null where it cannot be given."""
    router = evaluation.router
    return {
        "about": evaluation.about,
        "notes": evaluation.notes,
        "router": {
            "name": router.router,
            "kinds": {
                k.kind: {"accuracy": k.accuracy, "interval": k.interval(), "right": k.right, "count": k.count}
                for k in router.kinds
            },
            **asdict(evaluation.quality),
            "latency_ms": router.latency_ms,
            "wrong": [
                {"query": q.query, "needed": sorted(q.experts), "decided": d.kind, "experts": list(d.experts)}
                for q, d in router.wrong
            ],
        },
        "experts": [asdict(result) for result in evaluation.experts],
        "perplexity": {name: each and asdict(each) for name, each in evaluation.perplexity.items()},
    }


def as_markdown(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    parts = [
        INTERVALS,
        *([_list(evaluation.notes)] if evaluation.notes else []),
        *_gate_part(evaluation.gates),
        *_router_part(evaluation.router, evaluation.quality),
        *(part for result in evaluation.experts for part in _expert_part(result, evaluation.perplexity)),
        *_together_part(evaluation.experts),
        *_latency_part(evaluation.experts),
        *(["## Pictures"] if pictures else []),
    ]
    return markdown_document("Evaluation", evaluation.about, parts, pictures)


def _gate_part(gates: Sequence[tuple[ExpertResult, Gate]]) -> list[str]:
    if not gates:
        return []
    rows = [
        [
            result.expert,
            result.data,
            gate.variant,
            METRICS[gate.metric],
            in_points(gate.difference),
            _n(gate.difference),
            "yes" if gate.passed else "**no**",
        ]
        for result, gate in gates
    ]
    heading = ["expert", "data", "what serves", "measure", "against the base", "n", "beats the base"]
    return ["## Does the expert beat the base?", markdown_table(heading, rows)]


def _router_part(router: RoutingReport, quality: RouterQuality) -> list[str]:
    kinds = [
        [kind.kind, with_interval(Estimate(kind.accuracy, *kind.interval(), kind.count)), str(kind.count)]
        for kind in router.kinds
    ]
    whole = [
        ["macro-F1 of the classes", with_interval(quality.macro_f1), _n(quality.macro_f1)],
        ["AUROC of none-of-them", with_interval(quality.none_auroc), _n(quality.none_auroc)],
        ["expected calibration error", with_interval(quality.calibration_error), _n(quality.calibration_error)],
        ["the prediction set holds what is needed", with_interval(quality.coverage), _n(quality.coverage)],
        [
            "size of the prediction set",
            f"{quality.set_size.value:.2f}" if quality.set_size else NOTHING,
            _n(quality.set_size),
        ],
    ]
    confusion = [
        [name, *(str(count) for count in row)]
        for name, row in zip(quality.classes, quality.confusion, strict=True)
        if sum(row)
    ]
    latency = ", ".join(f"{name} {ms:.1f} ms" for name, ms in router.latency_ms.items())
    return [
        f"## Router: {router.router}",
        markdown_table(["kind of question", "exactly right", "n"], kinds),
        markdown_table(["over all questions", "", "n"], whole),
        markdown_table(["needed ↓ decided →", *quality.classes], confusion),
        f"A decision takes {latency}.",
    ]


def _expert_part(result: ExpertResult, perplexity: Mapping[str, Perplexity | None]) -> list[str]:
    variants = result.variants
    parts = [
        f"## Answers: {result.expert}, {result.data} ({result.questions} questions)",
        _estimates("", {name: v.metrics for name, v in variants.items()}, with_interval),
    ]
    compared = {name: v.against_base for name, v in variants.items() if v.against_base}
    if compared:
        parts.append(_estimates("against the base", compared, in_points))
    refusals = {name: (v, v.refusal) for name, v in variants.items() if v.refusal is not None}
    if refusals:
        parts.append(_refusal_table(refusals))
    if (trained := perplexity.get(result.expert)) is not None:
        before = NOTHING if trained.without_adapter is None else f"{trained.without_adapter:.2f}"
        parts.append(
            f"Perplexity on the training run's validation questions ({trained.base}): {before} without the adapter, "
            f"{trained.with_adapter:.2f} with it."
        )
    elif result.expert in perplexity:
        parts.append("Perplexity: not measured, as it comes from the training run of an adapter and there is none.")
    parts += [f"{v.failed} answers of {name} failed and count as empty." for name, v in variants.items() if v.failed]
    return parts


def _estimates(corner: str, columns: Mapping[str, Mapping[str, Estimate | None]], cell: Any) -> str:
    """One row a metric that was measured, one column a variant."""
    rows = []
    for metric, title in METRICS.items():
        estimates = [column[metric] for column in columns.values()]
        if any(estimates):
            rows.append([title, *map(cell, estimates), _n(next(filter(None, estimates)))])
    return markdown_table([corner, *columns, "n"], rows)


def _refusal_table(refusals: Mapping[str, tuple[VariantResult, Refusal]]) -> str:
    rows = [
        ["a passage given holds the key", *(_with_n(v.held) for v, _ in refusals.values())],
        ["refusals that were right (precision)", *(_with_n(r.precision) for _, r in refusals.values())],
        ["unanswerable that were refused (recall)", *(_with_n(r.recall) for _, r in refusals.values())],
        ["answerable that were refused", *(_with_n(r.wrongly) for _, r in refusals.values())],
    ]
    if any(r.unanswerable for _, r in refusals.values()):
        rows.append(
            ["questions that no text answers, refused", *(_with_n(r.unanswerable) for _, r in refusals.values())]
        )
    return markdown_table(
        ["each question with its passages, and again without those that hold its key", *refusals], rows
    )


def _together_part(results: Sequence[ExpertResult]) -> list[str]:
    there = [(result, result.together) for result in results if result.together is not None]
    if not there:
        return []
    rows = [
        [f"{result.expert}, {result.data}", *_together_cells(together, metric)]
        for result, together in there
        for metric in together.regret
        if together.regret[metric] is not None
    ]
    went = [[f"{result.expert}, {result.data}", _went(together)] for result, together in there]
    return [
        "## Router and expert together",
        markdown_table(["", "measure", "the right expert asked", "the router chose", "regret", "n"], rows),
        markdown_table(["questions of", "went to"], went),
    ]


def _together_cells(together: Together, metric: str) -> list[str]:
    regret = together.regret[metric]
    return [
        METRICS[metric],
        with_interval(together.right[metric]),
        with_interval(together.auto[metric]),
        in_points(regret),
        _n(regret),
    ]


def _went(together: Together) -> str:
    return ", ".join(f"{who}: {count}" for who, count in together.went_to.items())


def _latency_part(results: Sequence[ExpertResult]) -> list[str]:
    rows = [
        [f"{result.expert}, {result.data}", name, *_latency_cells(latency)]
        for result in results
        for name, latency in [
            *((name, variant.latency) for name, variant in result.variants.items()),
            *([("the router chose", result.together.latency)] if result.together else []),
        ]
        if latency is not None
    ]
    heading = ["", "", "decision p50 / p95", "first token p50 / p95", "whole answer p50 / p95", "tokens an answer"]
    return ["## Latency", markdown_table(heading, rows)] if rows else []


def _latency_cells(latency: Latency) -> list[str]:
    route = latency.route_s
    return [
        f"{route[0] * 1000:.1f} / {route[1] * 1000:.1f} ms" if route else NOTHING,
        in_milliseconds(latency.first_token_s),
        f"{latency.answer_s[0]:.2f} / {latency.answer_s[1]:.2f} s",
        f"{latency.tokens:.0f}",
    ]


def markdown_document(heading: str, about: Mapping[str, str], parts: Iterable[str], pictures: Mapping[str, str]) -> str:
    """``about`` stands under the heading, the pictures at the end: their titles by file name."""
    every = [
        f"# {heading}",
        "  \n".join(f"**{name}**: {text}" for name, text in about.items()),
        *parts,
        *(f"![{title}]({file})" for file, title in pictures.items()),
    ]
    return "\n\n".join(every) + "\n"


def in_milliseconds(seconds: tuple[float, float]) -> str:
    """Two percentiles."""
    return f"{seconds[0] * 1000:.0f} / {seconds[1] * 1000:.0f} ms"


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def in_points(estimate: Estimate | None) -> str:
    """A difference in percentage points."""
    if estimate is None:
        return NOTHING
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _with_n(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{with_interval(estimate)}, n {estimate.n}"


def _n(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else str(estimate.n)
