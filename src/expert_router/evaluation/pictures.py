"""The reports' pictures: who was taken for whom, whether probabilities can be believed, what variants know; load."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any, cast

from matplotlib.figure import Figure

from expert_router.evaluation.answers import KEY, METRICS
from expert_router.evaluation.load_report import knee
from expert_router.evaluation.optimization import TYPICAL_TOKENS
from expert_router.evaluation.soak_report import COUNTS, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.evaluation.answers import ExpertResult
    from expert_router.evaluation.load_report import LevelResult
    from expert_router.evaluation.optimization import OptimizedExpert
    from expert_router.evaluation.report import Evaluation
    from expert_router.evaluation.router_quality import RouterQuality
    from expert_router.evaluation.soak import Soak

DPI = 120


def draw_pictures(folder: Path, evaluation: Evaluation) -> dict[str, str]:
    """Write PNG files; their titles by file name."""
    drawn = {
        "confusion.png": ("Which experts a question needs, and which the router chose", _confusion(evaluation.quality)),
        "calibration.png": ("How often the router's probabilities come true", _calibration(evaluation.quality)),
    }
    if evaluation.experts:
        drawn["answers.png"] = ("Each variant's answers, with 95 % intervals", _answers(evaluation.experts))
    return _save(folder, drawn)


def draw_optimization(folder: Path, experts: Sequence[OptimizedExpert]) -> dict[str, str]:
    """The same for variants of the experts' models: what each costs against what it knows."""
    figure = Figure(figsize=(10, 1 + 3.4 * len(experts)), layout="constrained")
    panels: Any = figure.subplots(len(experts), 2, squeeze=False)
    for row, result in zip(panels, experts, strict=True):
        sizes = {name: each.size_bytes / 1e6 for name, each in result.variants.items()}
        seconds = {name: each.speed.answer_s for name, each in result.variants.items()}
        for axes, costs, label in zip(
            row, (sizes, seconds), ("MB on disk", f"seconds for {TYPICAL_TOKENS} tokens"), strict=True
        ):
            for name, each in result.variants.items():
                known = each.accuracy
                errors = [[known.value - known.low], [known.high - known.value]]
                axes.errorbar(costs[name], known.value, yerr=errors, fmt="o", capsize=3, label=name)
            axes.set(title=result.expert, xlabel=label, ylabel=METRICS[KEY], ylim=(0, 1))
            axes.set_xlim(left=0)
        row[1].legend(fontsize="small", loc="lower left")
    return _save(folder, {"variants.png": ("What each variant costs and knows, with 95 % intervals", figure)})


def draw_load(folder: Path, levels: Sequence[LevelResult]) -> dict[str, str]:
    """The same for a load test: throughput and latency by the number of clients, with the knee, or by the rate."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    throughput, latency = cast("Any", figure.subplots(2, sharex=True))
    loads = [level.load for level in levels]
    by_rate = any(level.rate is not None for level in levels)
    throughput.plot(loads, [level.requests_per_s for level in levels], marker="o", label="answered")
    throughput.plot(loads, [level.goodput_per_s for level in levels], marker="o", label="within the service level")
    for label, percentiles in (
        ("first token", [level.all.first_token_ms for level in levels]),
        ("whole answer", [level.all.answer_ms for level in levels]),
    ):
        latency.plot(loads, [nan if each is None else each["p95"] for each in percentiles], marker="o", label=label)
    for axes in (throughput, latency):
        if (point := knee(levels)) is not None:
            axes.axvline(point, linestyle=":", color="grey", label=f"knee: {point}")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    throughput.set(ylabel="requests a second")
    latency.set(xlabel="requests sent a second" if by_rate else "clients at once", ylabel="p95, milliseconds")
    title = f"Throughput and latency as {'more is asked' if by_rate else 'clients are added'}"
    return _save(folder, {"load.png": (title, figure)})


def draw_soak(folder: Path, result: Soak) -> dict[str, str]:
    """The same for a soak: what the server's processes held, by the requests that were over."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    memory, counts = cast("Any", figure.subplots(2, sharex=True))
    requests = [sample.requests for sample in result.samples]
    memory.plot(requests, [sample.memory_bytes / MIB for sample in result.samples], linewidth=1, label="all")
    for name, points in result.by_process().items():
        memory.plot([x for x, _ in points], [y / MIB for _, y in points], linewidth=0.8, label=name)
    memory.set(ylabel="MiB")
    for name in COUNTS:
        counts.plot(requests, [getattr(sample, name) for sample in result.samples], linewidth=0.8, label=name)
    counts.set(xlabel="requests that were over")
    for axes in (memory, counts):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(folder, {"soak.png": (f"Mixed load: memory {result.growth.share:+.1%}", figure)})


def _save(folder: Path, drawn: Mapping[str, tuple[str, Figure]]) -> dict[str, str]:
    """By file name: a figure and its title, which is returned."""
    for file, (title, figure) in drawn.items():
        figure.suptitle(title)
        figure.savefig(folder / file, dpi=DPI)
    return {file: title for file, (title, _) in drawn.items()}


def _confusion(quality: RouterQuality) -> Figure:
    """Shares of a row in colour, counts in figures."""
    rows = [(name, row) for name, row in zip(quality.classes, quality.confusion, strict=True) if sum(row)]
    shares = [[count / sum(row) for count in row] for _, row in rows]
    figure = Figure(figsize=(2.6 + 0.95 * len(quality.classes), 2.2 + 0.6 * len(rows)), layout="constrained")
    axes: Any = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(quality.classes)), quality.classes, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(xlabel="decided", ylabel="needed")
    for y, (_, row) in enumerate(rows):
        for x, count in enumerate(row):
            dark = shares[y][x] > 0.5  # noqa: PLR2004 - half of the colours
            axes.text(x, y, str(count), ha="center", va="center", color="white" if dark else "black")
    return figure


def _calibration(quality: RouterQuality) -> Figure:
    """The more questions are in a point, the larger it is."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="as said")
    for label, points in quality.reliability.items():
        said, so, counts = zip(*points, strict=True)
        (line,) = axes.plot(said, so, alpha=0.5, label=label)
        axes.scatter(said, so, [8 + count for count in counts], alpha=0.6, color=line.get_color(), clip_on=False)
    axes.set(xlabel="probability that the router gives", ylabel="how often it is so", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure


def _answers(results: Sequence[ExpertResult]) -> Figure:
    """A group of bars for each metric, a panel for each expert and set of data."""
    figure = Figure(figsize=(8, 1 + 2.6 * len(results)), layout="constrained")
    panels: Any = figure.subplots(len(results), squeeze=False)
    for (axes,), result in zip(panels, results, strict=True):
        width = 0.8 / len(result.variants)
        for place, (name, variant) in enumerate(result.variants.items()):
            there = [(x, e) for x, e in enumerate(variant.metrics[m] for m in METRICS) if e is not None]
            at = [x + width * (place - (len(result.variants) - 1) / 2) for x, _ in there]
            errors = [[max(0, e.value - e.low) for _, e in there], [max(0, e.high - e.value) for _, e in there]]
            axes.bar(at, [e.value for _, e in there], width, yerr=errors, capsize=2, label=name)
        axes.set_xticks(range(len(METRICS)), METRICS.values())
        axes.set(ylim=(0, 1), title=f"{result.expert}, {result.data} ({result.questions} questions)")
        axes.legend(fontsize="small", loc="upper left")
    return figure
