"""``expert-router bench dialogues``: each turn of conversations, decided with those before it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine, router_and_policy

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.settings import Settings

HELP = "each turn of conversations"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="dialogues as JSON lines (default: the test dialogues)"
    )
    parser.add_argument("--wrong", action="store_true", help="list what went wrong")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.dialogues import read_dialogues
    from expert_router.evaluation.dialogues import measure_dialogues

    path = args.data or settings.resolve(settings.paths.data) / "dialogues/test.jsonl"
    dialogues = read_dialogues(path)
    router, policy = router_and_policy(settings)
    report = measure_dialogues(dialogues, lambda turn, history: policy.decide(router.score(turn, history)))
    if args.json:
        print(json.dumps({"machine": machine(), "dialogues": len(dialogues), **asdict(report)}, indent=2))
        return 0
    print(f"{len(dialogues)} dialogues, each turn decided with those before it   {machine()}")
    for kind, right in {**report.kinds, "all": report.all}.items():
        print(f"  {kind:<12}{right.value:>7.1%} of {right.n:<6}95 % interval {right.low:.1%} to {right.high:.1%}")
    for said, needed, kind, chosen in report.wrong if args.wrong else []:
        print(f"  ! {said!r} needs {needed or 'nobody'} -> {kind} {chosen}")
    return 0
