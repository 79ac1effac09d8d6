"""``expert-router train``: fit the router on the prepared data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "fit the router on the prepared data"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("router",), help="router: the embedding router's head and thresholds")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data (default: data/processed)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the artifact goes (default: router.artifact)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: Namespace) -> int:
    from expert_router.artifacts import load_experts
    from expert_router.data.labelled import read_labelled
    from expert_router.serving.build import load_encoder
    from expert_router.settings import load_settings
    from expert_router.training.router import fit_router

    settings = load_settings(args.config)
    data = args.data or settings.resolve(settings.paths.data) / "processed"
    output = args.output or settings.resolve(settings.router.artifact)
    experts = list(load_experts(settings.resolve(settings.paths.experts), settings.home))
    train, calibration = (read_labelled(data / f"routing_{split}.csv") for split in ("train", "calibration"))
    encoder = load_encoder(settings, progress=True)
    started = time.perf_counter()
    artifact = fit_router(train, calibration, experts, encoder, seed=args.seed, progress=True)
    artifact.save(output)
    print(
        f"Fitted on {len(train)} questions, calibrated on {len(calibration)}, in {time.perf_counter() - started:.1f} s."
    )
    print(f"Thresholds: {artifact.thresholds}. Saved in {output}.")
    print("How good it is: expert-router bench routers")
    return 0
