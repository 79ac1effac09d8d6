"""``expert-router bench parts``: how questions for several experts are taken apart."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import TEST_SPLIT, machine, router_and_policy

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.settings import Settings

HELP = "how questions for several experts are taken apart"
JOINED = 500


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled CSV or JSON lines (default: the test split)"
    )


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.parts import measure_parts

    path = args.data or settings.resolve(settings.paths.data) / TEST_SPLIT
    router, _ = router_and_policy(settings)
    report = measure_parts(read_labelled(path), lambda text: router.score(text).experts, count=JOINED)
    if args.json:
        print(json.dumps({"machine": machine(), **asdict(report)}, indent=2))
        return 0
    p50, p95 = report.latency_ms
    print(f"{report.count} pairs of questions joined as people do   p50 {p50:.1f} ms  p95 {p95:.1f} ms   {machine()}")
    print(f"  cut where they were joined       {report.exact / report.count:.1%}")
    print(f"  cut elsewhere, experts right     {report.near / report.count:.1%}")
    print(f"  not cut: both get the whole      {report.whole / report.count:.1%}")
    return 0
