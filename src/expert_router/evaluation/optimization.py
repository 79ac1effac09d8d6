"""Which form of an expert's model to serve: variants, measured like the one that serves, and what speaks for each.

A variant is a base, perhaps pruned, and a quantisation. What it costs is size and time, what it may lose is key facts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter

from expert_router.errors import ConfigError, DataError, EngineError
from expert_router.evaluation.answers import KEY, METRICS
from expert_router.evaluation.intervals import Estimate, paired_difference, share
from expert_router.evaluation.report import (
    JSON_FILE,
    in_milliseconds,
    in_points,
    markdown_document,
    markdown_table,
    with_interval,
    write_both,
)
from expert_router.types import DEFAULT_QUANTIZATION, QUANTIZATIONS, ModelVariant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from expert_router.evaluation.answers import Scored

REFERENCE = DEFAULT_QUANTIZATION
"""The variant that the others are compared with: the configured base as it is served without any choice."""
TYPICAL_TOKENS = 64
"""An answer's length where variants are compared by speed."""
FEWEST_TO_INSTALL = 50
"""Of fewer questions a single one is more than two points."""
NOTES = f"""\
Disk is the model made ready, adapter included. Loading is from there, canary included. Times are of one client that
asks one question after the other, and reads passages; tokens a second count from the first token on. In brackets are
95 % intervals, of differences from {REFERENCE} in points, question by question."""

Preference = Literal["speed", "size"]


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one client. ``first_token_s`` is the 50th and the 95th percentile, ``tokens_per_s`` counts from there on."""

    first_token_s: tuple[float, float]
    tokens_per_s: float

    @property
    def answer_s(self) -> float:
        """A typical answer's time."""
        rest = (TYPICAL_TOKENS - 1) / self.tokens_per_s if self.tokens_per_s else float("inf")
        return self.first_token_s[0] + rest


@dataclass(frozen=True, slots=True)
class MeasuredVariant:
    """``adapter`` is the hash of the weights it was measured with; ``difference`` is from the reference's accuracy."""

    model: ModelVariant
    adapter: str
    size_bytes: int
    load_s: float
    speed: Speed
    accuracy: Estimate
    difference: Estimate | None

    @property
    def loss(self) -> float:
        """The share of key facts that it gets wrong and the reference right, on balance."""
        return 0.0 if self.difference is None else -self.difference.value


@dataclass(frozen=True, slots=True)
class OptimizedExpert:
    """What was measured for an expert. ``base`` is the configured one; ``refused`` are variants that cannot serve."""

    expert: str
    base: str
    variants: dict[str, MeasuredVariant]
    refused: dict[str, str]


_EXPERTS = TypeAdapter(list[OptimizedExpert])


def variants_of(base: str, adapted: Iterable[str], pruned: Mapping[str, str]) -> dict[str, ModelVariant]:
    """The variants that can be measured, the reference first.

    ``adapted`` are the bases that the expert has an adapter for, ``pruned`` the bases by the pruned one made of each.
    """
    bases = [base, *(name for name in adapted if pruned.get(name) == base)]
    return {
        (kind if name == base else f"{name.removeprefix(f'{base}-')}-{kind}"): ModelVariant(name, kind)
        for name in bases
        for kind in QUANTIZATIONS
    }


def speed_of(answers: Sequence[Scored]) -> Speed:
    """Of answers to one client. Raises ``EngineError`` when there is none."""
    timed = [answer for answer in answers if answer.first_token_s is not None and answer.answer_s is not None]
    if not timed:
        raise EngineError(f"No question was answered: {answers[0].error}")
    first = [answer.first_token_s or 0.0 for answer in timed]
    after = sum((answer.answer_s or 0.0) for answer in timed) - sum(first)
    tokens = sum(answer.tokens - 1 for answer in timed)
    p50, p95 = np.percentile(first, [50, 95])
    return Speed((float(p50), float(p95)), tokens / max(after, 1e-9))


def key_facts(answers: Sequence[Scored], reference: Sequence[Scored] | None) -> tuple[Estimate, Estimate | None]:
    """How many are right, and how many more than in the reference's answers to the same questions.

    Raises ``DataError`` when no question has a key.
    """
    right = [answer.metrics[KEY] for answer in answers if KEY in answer.metrics]
    accuracy = share([value > 0 for value in right])
    if accuracy is None:
        raise DataError(f"The questions of {answers[0].question.expert} have no keys, which tell right from wrong.")
    if reference is None:
        return accuracy, None
    return accuracy, paired_difference(right, [answer.metrics[KEY] for answer in reference if KEY in answer.metrics])


def why_not(result: OptimizedExpert, variant: str, tolerance: float) -> str | None:
    """What forbids to install a variant that may lose ``tolerance``, a share of the key facts; ``None`` if nothing."""
    if variant in result.refused:
        return f"{variant} of {result.expert} cannot be served: {result.refused[variant]}"
    if variant not in result.variants:
        known = ", ".join(result.variants)
        return f"{variant} of {result.expert} was never measured, so nobody knows what it loses. Measured: {known}."
    measured = result.variants[variant]
    count = measured.accuracy.n
    if count < FEWEST_TO_INSTALL:
        return (
            f"{variant} of {result.expert} was measured on {count} questions, too few to tell what it loses: "
            f"at least {FEWEST_TO_INSTALL} are needed."
        )
    if too_much(measured, tolerance):
        return (
            f"{variant} of {result.expert} loses {100 * measured.loss:.1f} points of key-fact accuracy against "
            f"{REFERENCE} on {count} questions; {100 * tolerance:g} are tolerated."
        )
    return None


def too_much(measured: MeasuredVariant, tolerance: float) -> bool:
    return measured.loss > tolerance + 1e-9  # a loss of exactly as much is tolerated, however it is rounded


def recommend(result: OptimizedExpert, tolerance: float, prefer: Preference) -> str:
    """The fastest variant, by a typical answer's time, or the smallest, of those that lose no more than tolerated."""
    kept = {name: each for name, each in result.variants.items() if not too_much(each, tolerance)}
    return min(kept, key=lambda name: kept[name].speed.answer_s if prefer == "speed" else kept[name].size_bytes)


@dataclass(frozen=True, slots=True)
class Optimization:
    """A whole report. ``about`` is what was run, in words; ``tolerance`` a share, for what is recommended."""

    about: dict[str, str]
    experts: list[OptimizedExpert]
    tolerance: float
    prefer: Preference


def write_optimization(folder: Path, optimization: Optimization, pictures: Mapping[str, str]) -> None:
    """``pictures``: the titles by file name; they are beside the report."""
    recommended = {
        result.expert: recommend(result, optimization.tolerance, optimization.prefer) for result in optimization.experts
    }
    about = {**asdict(optimization), "reference": REFERENCE, "recommended": recommended}
    write_both(folder, optimization_as_markdown(optimization, pictures), about)


def read_optimization(folder: Path) -> list[OptimizedExpert]:
    """What ``write_optimization`` left. Raises ``ConfigError``."""
    try:
        report: dict[str, Any] = json.loads((folder / JSON_FILE).read_text("utf-8"))
        return _EXPERTS.validate_python(report["experts"])
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"{folder} is not the folder of a finished expert-router optimize: {problem}") from error


def optimization_as_markdown(optimization: Optimization, pictures: Mapping[str, str]) -> str:
    parts = [NOTES, *(part for result in optimization.experts for part in _expert_part(result, optimization))]
    return markdown_document("Variants of the experts' models", optimization.about, parts, pictures)


def _expert_part(result: OptimizedExpert, optimization: Optimization) -> list[str]:
    best = recommend(result, optimization.tolerance, optimization.prefer)
    rows = [_row(name, each, _verdict(name, each, best, optimization)) for name, each in result.variants.items()]
    count = result.variants[REFERENCE].accuracy.n
    few = " So few questions are a quick look: nothing is installed by it." if count < FEWEST_TO_INSTALL else ""
    why = "fastest" if optimization.prefer == "speed" else "smallest"
    return [
        f"## {result.expert} on {result.base} ({count} questions)",
        markdown_table(_HEADING, rows),
        *(f"{name} is refused: {reason}" for name, reason in result.refused.items()),
        f"Recommended: **{best}**, the {why} that loses at most {100 * optimization.tolerance:g} points.{few}",
    ]


_HEADING = [
    "variant", "disk", "load", "first token p50 / p95", "tokens/s", f"{TYPICAL_TOKENS} tokens", METRICS[KEY],
    f"against {REFERENCE}", "",
]  # fmt: skip


def _row(name: str, measured: MeasuredVariant, verdict: str) -> list[str]:
    speed = measured.speed
    return [
        name,
        f"{measured.size_bytes / 1e6:.0f} MB",
        f"{measured.load_s:.1f} s",
        in_milliseconds(speed.first_token_s),
        f"{speed.tokens_per_s:.0f}",
        f"{speed.answer_s:.2f} s",
        with_interval(measured.accuracy),
        in_points(measured.difference),
        verdict,
    ]


def _verdict(name: str, measured: MeasuredVariant, best: str, optimization: Optimization) -> str:
    if too_much(measured, optimization.tolerance):
        return "loses too much"
    return "**recommended**" if name == best else ""
