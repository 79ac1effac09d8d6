"""What a load test showed: latencies, throughput and goodput by the number of clients, and where more gain no more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.evaluation.intervals import share
from expert_router.evaluation.report import markdown_document, markdown_table, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.evaluation.http_load import Level, Sample
    from expert_router.evaluation.intervals import Estimate

REFUSALS = {"429", "503"}
NOTHING = "-"
KNEE_POINTS = 3
LEAST_GAIN = 1.1


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What an answer must keep to count as good: milliseconds to the first token, and a token after it on average.

    As DistServe defines it (Zhong et al. 2024, https://arxiv.org/abs/2401.09670). The defaults are MLPerf Inference's
    for Llama 2 70B on a server (https://github.com/mlcommons/inference_policies).
    """

    first_token_ms: float = 2000.0
    inter_token_ms: float = 200.0

    def kept_by(self, sample: Sample) -> bool:
        first = sample.first_token_s
        if sample.error or first is None:
            return False
        return first * 1000 <= self.first_token_ms and sample.token_s * 1000 <= self.inter_token_ms


Percentiles = dict[str, float]
"""``p50``, ``p95`` and ``p99``."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds: to the first token, between two pieces of text, and to the answer's end."""

    first_token_ms: Percentiles | None
    inter_token_ms: Percentiles | None
    answer_ms: Percentiles | None


@dataclass(frozen=True, slots=True)
class LevelResult:
    """``all`` are the latencies of whole answers, ``new`` of those that are not from the cache.

    ``good`` counts the requests within the service level. ``failures`` by HTTP status, or ``no answer``, or ``broken
    off``, have one of their reasons in ``reasons``. ``routing``: how often exactly those were chosen who are needed.
    ``refusal_ms``: until a refusal. ``rate``: requests sent a second, where the number of clients was not set.
    """

    clients: int
    seconds: float
    requests: int
    answered: int
    requests_per_s: float
    tokens_per_s: float
    good: int
    goodput_per_s: float
    all: Latencies
    new: Latencies
    cache_hits: int
    failures: dict[str, int]
    reasons: dict[str, str]
    routing: Estimate | None
    refusal_ms: Percentiles | None
    rate: float | None = None

    @property
    def load(self) -> float:
        """What was set: the rate, else the number of clients."""
        return self.clients if self.rate is None else self.rate

    @property
    def refused(self) -> int:
        return sum(count for status, count in self.failures.items() if status in REFUSALS)


def summarise(level: Level, wanted: ServiceLevel) -> LevelResult:
    """``level`` has samples."""
    answers = [sample for sample in level.samples if not sample.error]
    reasons: dict[str, list[str]] = {}
    for sample in level.samples:
        if sample.error:
            reasons.setdefault(_failure(sample), []).append(sample.error)
    good = sum(map(wanted.kept_by, level.samples))
    return LevelResult(
        level.clients,
        level.seconds,
        len(level.samples),
        len(answers),
        len(answers) / level.seconds,
        sum(sample.tokens for sample in answers) / level.seconds,
        good,
        good / level.seconds,
        _latencies(answers),
        _latencies([sample for sample in answers if not sample.from_cache]),
        sum(sample.from_cache for sample in answers),
        {failure: len(said) for failure, said in reasons.items()},
        {failure: said[0] for failure, said in reasons.items()},
        share([sample.right for sample in answers if sample.decided]),
        _percentiles([sample.total_s for sample in level.samples if str(sample.status) in REFUSALS]),
        level.rate,
    )


def knee(levels: Sequence[LevelResult]) -> int | None:
    """The number of clients from which on more of them gain little.

    Kneedle's rule (Satopää et al. 2011, "Finding a 'Kneedle' in a haystack"), without its smoothing: of the throughput
    reached with up to so many clients, both scaled to 0..1, the point farthest above the diagonal; the first point
    where all others gain less than a tenth. ``None`` of fewer than three points, or where none is above the diagonal,
    or of rates: more are sent than answered where they no longer meet.
    """
    if _is_open(levels):
        return None
    points = sorted({level.clients: level.requests_per_s for level in levels}.items())
    if len(points) < KNEE_POINTS:
        return None
    clients, measured = np.array(points, dtype=float).T
    reached = np.maximum.accumulate(measured)
    if not reached[-1]:
        return None
    if reached[-1] < LEAST_GAIN * reached[0]:
        return points[0][0]
    above = (reached - reached[0]) / (reached[-1] - reached[0]) - (clients - clients[0]) / (clients[-1] - clients[0])
    best = int(above.argmax())
    return points[best][0] if above[best] > 0 else None


def load_as_object(about: Mapping[str, str], levels: Sequence[LevelResult]) -> dict[str, Any]:
    return {"about": dict(about), "knee": knee(levels), "levels": [asdict(level) for level in levels]}


def load_as_markdown(about: Mapping[str, str], levels: Sequence[LevelResult], pictures: Mapping[str, str]) -> str:
    parts = [_throughput_table(levels), "Milliseconds, p50 / p95 / p99:", _latency_table(levels)]
    if any(level.failures for level in levels):
        failures = [(level, *failure) for level in levels for failure in level.failures.items()]
        rows = [[f"{level.load:g}", f, str(n), level.reasons[f].replace("|", "\\|")] for level, f, n in failures]
        parts.append(markdown_table([_set(levels), "without an answer", "how many", "for example"], rows))
    point = knee(levels)
    if point is not None:
        parts.append(f"**Knee**: {point}. More clients than that gain little throughput, and wait longer.")
    elif len(levels) >= KNEE_POINTS and not _is_open(levels):
        parts.append("**Knee**: none within these numbers of clients.")
    return markdown_document("Load", about, parts, pictures)


def _is_open(levels: Sequence[LevelResult]) -> bool:
    return any(level.rate is not None for level in levels)


def _set(levels: Sequence[LevelResult]) -> str:
    """The heading of ``load``."""
    return "sent a second" if _is_open(levels) else "clients"


def _throughput_table(levels: Sequence[LevelResult]) -> str:
    heading = [_set(levels), "requests", "requests/s", "tokens/s", "within the service level", "good/s",
               "from the cache", "refused", "failed", "routed right"]  # fmt: skip
    rows = [
        [
            f"{level.load:g}",
            str(level.requests),
            f"{level.requests_per_s:.2f}",
            f"{level.tokens_per_s:.0f}",
            f"{level.good / level.requests:.1%}",
            f"{level.goodput_per_s:.2f}",
            str(level.cache_hits),
            str(level.refused),
            str(level.requests - level.answered - level.refused),
            with_interval(level.routing),
        ]
        for level in levels
    ]
    return markdown_table(heading, rows)


def _latency_table(levels: Sequence[LevelResult]) -> str:
    """Where the cache gave answers, a second line for those that were new; where some were refused, a third."""
    rows = []
    for level in levels:
        rows.append([f"{level.load:g}", *_latency_cells(level.all)])
        if level.cache_hits:
            rows.append([f"{level.load:g}, not from the cache", *_latency_cells(level.new)])
        if level.refusal_ms is not None:
            rows.append([f"{level.load:g}, refused", NOTHING, NOTHING, _cell(level.refusal_ms)])
    return markdown_table([_set(levels), "first token", "between pieces of text", "whole answer"], rows)


def _latency_cells(latencies: Latencies) -> list[str]:
    every = (latencies.first_token_ms, latencies.inter_token_ms, latencies.answer_ms)
    return [_cell(each) for each in every]


def _cell(percentiles: Percentiles | None) -> str:
    return NOTHING if percentiles is None else " / ".join(f"{ms:.0f}" for ms in percentiles.values())


def _failure(sample: Sample) -> str:
    if not sample.status:
        return "no answer"
    return "broken off" if sample.status == 200 else str(sample.status)  # noqa: PLR2004 - it began well


def _latencies(answers: Sequence[Sample]) -> Latencies:
    return Latencies(
        _percentiles([sample.first_token_s for sample in answers if sample.first_token_s is not None]),
        _percentiles([gap for sample in answers for gap in sample.gaps_s]),
        _percentiles([sample.total_s for sample in answers]),
    )


def _percentiles(seconds: Sequence[float]) -> Percentiles | None:
    if not seconds:
        return None
    return {f"p{rank}": float(np.percentile(seconds, rank)) * 1000 for rank in (50, 95, 99)}
