"""``expert-router bench stability``: whether the decision stays the same, however a question is typed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine, router_and_policy

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.settings import Settings

HELP = "the same decision however a question is typed"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="questions with a paraphrase each (default: the project's)"
    )
    parser.add_argument("--wrong", action="store_true", help="list what went wrong")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.evaluation.stability import measure_stability, read_paraphrases

    path = args.data or settings.resolve(settings.paths.data) / "stability/paraphrases.csv"
    router, policy = router_and_policy(settings)
    results = measure_stability(read_paraphrases(path), lambda text: policy.decide(router.score(text)))
    if args.json:
        print(json.dumps({"machine": machine(), "stability": [asdict(result) for result in results]}, indent=2))
        return 0
    print(f"The same decision, {results[0].same.n} questions of the test split, typed otherwise:")
    for result in results:
        same = result.same
        print(f"  {result.way:<20}{same.value:>7.1%}   95 % interval {same.low:.1%} to {same.high:.1%}")
        for question, text in result.changed if args.wrong else []:
            print(f"  ! {question!r} -> {text!r}")
    return 0
