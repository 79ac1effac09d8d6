"""What the commands that measure share: whom they ask and how, where the report goes, and what it says of the run."""

from __future__ import annotations

import hashlib
import importlib
import platform
import time
from typing import TYPE_CHECKING

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from expert_router.evaluation.questions import Question
    from expert_router.ports import Router
    from expert_router.routing.policy import Policy
    from expert_router.settings import Settings

RUNS = "runs"
AT_ONCE = 8
"""So many questions are asked at the same time, where it is not speed that is measured."""
PREPARED = "the prepared test split"
TEST_SPLIT = "processed/routing_test.csv"
"""The router's, below the data."""
PACKAGES = ("matplotlib", "rouge_score", "sacrebleu", "sklearn")


def chosen_names(joined: str | None, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in (joined or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{option} does not know {', '.join(unknown)}. Known: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def numbers(joined: str, option: str) -> list[int]:
    try:
        return [int(number) for number in joined.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers joined by commas, not {joined!r}.") from None


def new_folder(output: Path | None, settings: Settings, kind: str) -> Path:
    """``output``, or one named by ``kind`` and the time; made before anything is asked: no report is written over."""
    folder = output or settings.home / RUNS / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already: name a new folder with --output.") from None
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be made: {error}") from error
    return folder


def require_packages() -> None:
    """Before anything is loaded or asked."""
    try:
        for module in PACKAGES:
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"Evaluating needs more packages ({error}): pip install 'expert-router[evaluate]'") from error


def about_run(
    questions: Iterable[Sequence[Question]], *, data: str, limit: int | None, settings: str, load: str
) -> dict[str, str]:
    """What a report says of its run. ``data``, ``settings`` and ``load``, what the machine had to do, are words."""
    asked = repr([question for group in questions for question in group])
    of_each = f", {limit} of each" if limit else ""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "settings": settings,
        "questions": f"{data}{of_each} (sha256 {hashlib.sha256(asked.encode()).hexdigest()[:12]})",
        "machine": f"{machine()}{load}",
    }


def router_and_policy(settings: Settings, name: str | None = None) -> tuple[Router, Policy]:
    """The configured router, or another by ``name``, and the settings' rules around its thresholds."""
    from expert_router.artifacts import load_experts
    from expert_router.serving.build import build_policy, build_router
    from expert_router.serving.parts import Parts

    experts = load_experts(settings.resolve(settings.paths.experts), settings.home)
    router = build_router(Parts(settings, experts, progress=True), name)
    return router, build_policy(router, experts, settings)


def machine() -> str:
    from expert_router.engines.threads import usable_cpus

    return f"{platform.machine()}, {usable_cpus()} CPUs"
