"""The report card of a training run: what was trained on what, how it went, and the loss as a picture."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from expert_router.artifacts import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.training.expert import TrainedExpert

REPORT_FILE, CARD_FILE, CURVE_FILE = "report.json", "card.md", "loss.png"


def write_card(folder: Path, trained: TrainedExpert, about: dict[str, Any]) -> dict[str, Any]:
    """Write ``report.json``, ``card.md`` and ``loss.png``; ``about`` says what the run was given. The report."""
    report = {
        **about,
        **trained.about(),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "machine": platform.machine(),
        "losses": trained.losses,
        "validation": trained.validation,
    }
    write_atomically(folder / REPORT_FILE, (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(folder / CARD_FILE, _card(report).encode())
    _draw(folder / CURVE_FILE, trained, f"{about['expert']} on {about['base']}")
    return report


def _card(report: dict[str, Any]) -> str:
    return f"""# {report["expert"]} on {report["base"]}

| | base | with the adapter |
|---|---|---|
| validation loss (nats a token) | {report["base_loss"]:.3f} | {report["loss"]:.3f} |
| perplexity | {report["base_perplexity"]:.2f} | {report["perplexity"]:.2f} |

{report["steps"]} steps on {report["examples"]} examples (data {report["data_sha256"][:12]}), {report["seconds"]:.0f} s,
{report["tokens_per_s"]:,.0f} tokens a second, peak memory {report["peak_memory_bytes"] / 1024**3:.1f} GiB,
{report["trained_parameters"]:,} trained parameters. Settings: `{json.dumps(report["training"])}`.

![loss]({CURVE_FILE})
"""


def _draw(path: Path, trained: TrainedExpert, title: str) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - with its backends a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for points, label in ((trained.losses, "training"), (trained.validation, "validation")):
        if points:
            style = {"marker": "."} if label == "validation" else {"linewidth": 0.8}
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.axhline(trained.base_loss, linestyle=":", color="grey", label="validation, without the adapter")
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
