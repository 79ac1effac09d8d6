"""``expert-router bench routers``: how often they are right, by kind of question, and how long a decision takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import TEST_SPLIT, machine, router_and_policy

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.routing import RoutingReport
    from expert_router.settings import Settings

HELP = "accuracy and latency of routers"
ZERO_SHOT_QUESTIONS = 20
"""The zero-shot baseline takes a hundred times longer a question, so it is timed on fewer."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--routers", default="embedding,lexical", metavar="NAMES", help="default: embedding,lexical")
    parser.add_argument(
        "--data", nargs="*", type=Path, metavar="FILE", help="labelled CSV or JSON lines (default: the test split)"
    )
    parser.add_argument("--wrong", action="store_true", help="list the questions that went wrong")
    parser.add_argument(
        "--zero-shot-shape",
        action="store_true",
        help="also time zero_shot on a random model of BART-large-mnli's exact shape (needs the zero-shot extra)",
    )


def run(args: Namespace, settings: Settings) -> int:
    examples = _questions(args, settings)
    reports = [_router_report(settings, name, examples) for name in args.routers.split(",")]
    if args.zero_shot_shape:
        reports.append(_zero_shot_shape_report(settings, examples[:ZERO_SHOT_QUESTIONS]))
    if args.json:
        print(json.dumps({"machine": machine(), "routers": [_report_object(report) for report in reports]}, indent=2))
        return 0
    for report in reports:
        _print_report(report, show_wrong=args.wrong)
    if args.zero_shot_shape:
        ratio = reports[-1].latency_ms["p50"] / reports[0].latency_ms["p50"]
        print(
            f"\nA decision of {reports[-1].router} takes {ratio:.0f} times as long as one of {reports[0].router} (p50)."
        )
    return 0


def _questions(args: Namespace, settings: Settings) -> list[LabelledQuestion]:
    from expert_router.data.labelled import read_labelled

    files = args.data or [settings.resolve(settings.paths.data) / TEST_SPLIT]
    return [example for path in files for example in read_labelled(path)]


def _router_report(settings: Settings, name: str, examples: list[Any]) -> RoutingReport:
    from expert_router.evaluation.routing import evaluate_routing

    router, policy = router_and_policy(settings, name)
    return evaluate_routing(examples, lambda query: policy.decide(router.score(query), name), name)


def _zero_shot_shape_report(settings: Settings, examples: list[Any]) -> RoutingReport:
    """Latency only means something here: the weights are random."""
    import tempfile

    from expert_router.evaluation.zero_shot_shape import save_random_bart_mnli

    with tempfile.TemporaryDirectory() as folder:
        save_random_bart_mnli(Path(folder))
        router = settings.router.model_copy(update={"zero_shot_model": folder})
        return _router_report(settings.model_copy(update={"router": router}), "zero_shot", examples)


def _report_object(report: RoutingReport) -> dict[str, Any]:
    kinds = {
        kind.kind: {"count": kind.count, "right": kind.right, "accuracy": kind.accuracy, "interval": kind.interval()}
        for kind in report.kinds
    }
    prediction_sets = {"coverage": report.coverage, "set_size": report.set_size, "asked_back": report.asked_back}
    return {"router": report.router, "kinds": kinds, "latency_ms": report.latency_ms, **prediction_sets}


def _print_report(report: RoutingReport, *, show_wrong: bool) -> None:
    latency = "  ".join(f"{name} {value:.1f} ms" for name, value in report.latency_ms.items())
    print(f"\n{report.router}   {latency}   {machine()}")
    for kind in report.kinds:
        low, high = kind.interval()
        counts = f"{kind.right:>5} of {kind.count:<5}{kind.accuracy:>7.1%}"
        print(f"  {kind.kind:<24}{counts}   95 % interval {low:.1%} to {high:.1%}")
    print(
        f"  what is needed is in the prediction set for {report.coverage:.1%}, which holds {report.set_size:.2f}; "
        f"{report.asked_back} asked back"
    )
    for example, decision in report.wrong if show_wrong else []:
        print(f"  ! {example.kind}: {example.query!r} -> {decision.kind} {','.join(decision.experts)}")
