"""A checkout to train in: a base of random weights, a few texts to answer from and two questions about them."""

from __future__ import annotations

import csv
import shutil
from typing import TYPE_CHECKING, Any

from tiny_gguf import write_llama

from expert_router.artifacts import sha256_of
from expert_router.serving.parts import fetch_model
from expert_router.settings import load_settings
from support import ROOT, make_home

if TYPE_CHECKING:
    from pathlib import Path

BASE = "tiny-random"
TEXTS = {
    "sleep/stages.md": "# REM sleep\nIn REM sleep the eyes dart about under closed lids.\n",
    "sleep/naps.md": "# Naps\nA nap of twenty minutes helps for hours.\n",
    "sleep/light.md": "# Light\nBright light in the morning moves the body clock forward.\n",
    "sleep/coffee.md": "# Coffee\nHalf of the caffeine is still there after five hours.\n",
    "cars/early.md": "# Carl Benz\nCarl Benz patented his three-wheeler in January 1886.\n",
}
QUESTIONS = [
    ("How long should a nap be?", "A nap of twenty minutes helps for hours.", "twenty minutes"),
    ("What do the eyes do in REM sleep?", "The eyes dart about under closed lids.", "dart about"),
]
READING = ("Light", "When does bright light move the body clock forward?", "in the morning")


def make_training_home(folder: Path, **base: Any) -> Path:
    """A checkout whose models.lock has the random base, as ``write_llama`` is told, beside the real ones."""
    home = make_home(folder)
    weights = home / "tiny.gguf"
    write_llama(weights, context_tokens=4096, **base)
    with (home / "models.lock").open("a", encoding="utf-8") as lock:
        lock.write(f"""
[[{BASE}.files]]
name = "tiny.gguf"
size = {weights.stat().st_size}
sha256 = "{sha256_of(weights)}"
licence = "none"
upstream = "random"
[[{BASE}.files.sources]]
kind = "path"
path = "tiny.gguf"
""")
    return home


def training_environment(home: Path) -> dict[str, str]:
    """Variables for the checkout: its own cache, in which the shipped encoder's weights are brought already."""
    settings = load_settings("default")
    encoder = settings.router.encoder
    fetch_model(settings, encoder, progress=False)
    weights = home / "cache" / "weights"
    weights.mkdir(parents=True)
    (weights / encoder).symlink_to(settings.resolve(settings.paths.cache) / "weights" / encoder)
    return {
        "EXPERT_ROUTER_PATHS__CACHE": str(home / "cache"),
        "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "2",
        "EXPERT_ROUTER_ROUTER__TUNED_ENCODER": str(ROOT / "artifacts" / "encoder"),
        "EXPERT_ROUTER_ENGINE__BASE_MODEL": BASE,
    }


def write_training_data(home: Path) -> Path:
    """Two questions that the texts answer, for learning and for validation, and one about a text, for learning."""
    shutil.rmtree(home / "data" / "knowledge", ignore_errors=True)
    for name, text in TEXTS.items():
        file = home / "data" / "knowledge" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    data = home / "data" / "processed"
    for split in ("train", "calibration"):
        with (data / f"{split}_sleep.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("question", "answer", "key"), *QUESTIONS])
    reading = home / "data" / "reading" / "sleep.csv"
    reading.parent.mkdir(exist_ok=True)
    with reading.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("passage", "question", "key"), READING])
    shutil.copy(data / "routing_train.csv", data / "routing_calibration.csv")
    return data
