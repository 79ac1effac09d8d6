"""``expert-router benchmark``: CLINC150 and BANKING77 from their authors' files, and a hundred experts made of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine, require_packages

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.data.intents import IntentData
    from expert_router.evaluation.intents import IntentReport
    from expert_router.ports import TextEncoder

HELP = "measure the router's encoder on public intent data sets"


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        f"{HELP}: accuracy over the intents, and how well questions that belong to none are told apart. Nothing out "
        "of scope trains anything; the threshold comes from in-scope validation questions. Needs the evaluate extra."
    )
    parser.add_argument(
        "dataset",
        choices=("clinc150", "banking77", "experts"),
        help="experts: the router itself with 2 to 100 of CLINC150's intents as experts",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with its authors' files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(args: Namespace) -> int:
    require_packages()
    from expert_router.data.intents import read_intents
    from expert_router.evaluation.intents import measure_intents
    from expert_router.serving.parts import Parts
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    encoder = Parts(settings, {}, progress=True).encoder
    if args.dataset == "experts":
        return _scale(args, read_intents("clinc150", args.data), encoder, settings.router.coverage)
    data = read_intents(args.dataset, args.data)
    report = measure_intents(data, encoder, progress=True)
    if args.json:
        print(json.dumps({**asdict(report), "machine": machine()}, indent=2))
    else:
        print(_table(report))
    return 0


def _scale(args: Namespace, data: IntentData, encoder: TextEncoder, coverage: float) -> int:
    from expert_router.evaluation.scale import measure_scale

    results = measure_scale(data, encoder, coverage, progress=True)
    if args.json:
        print(json.dumps({"machine": machine(), "routers": [asdict(result) for result in results]}, indent=2))
        return 0
    print(f"{data.name} (sha256 {data.sha256[:12]}), {machine()}")
    print("experts   right expert   nobody, others   nobody, never seen   fitted in   decision p50 / p95")
    for r in results:
        unseen = "" if r.kept_away_unseen is None else f"{r.kept_away_unseen:.1%}"
        latency = f"{r.p50_ms:.1f} / {r.p95_ms:.1f} ms"
        print(f"{r.experts:>7}{r.right:>15.1%}{r.kept_away:>17.1%}{unseen:>21}{r.fit_s:>10.1f} s{latency:>21}")
    return 0


def _table(report: IntentReport) -> str:
    rows = [
        ("in-scope accuracy", f"{report.accuracy:.1%} of {report.test} questions, {report.intents} intents"),
        ("in-scope questions refused", f"{report.false_alarm:.1%}"),
        ("calibration error", f"{report.ece:.3f}"),
    ]
    if report.auroc is not None and report.auprc is not None and report.oos_recall is not None:
        rows[1:1] = [
            ("out of scope: AUROC, AUPRC", f"{report.auroc:.4f}, {report.auprc:.3f} ({report.out_of_scope} questions)"),
            ("out-of-scope questions refused", f"{report.oos_recall:.1%}"),
        ]
    rows += [
        ("fitted in", f"{report.fit_s:.1f} s, of which {report.embed_s:.1f} s embed {report.train} questions"),
        ("a decision, p50 and p95", f"{report.p50_ms:.1f} and {report.p95_ms:.1f} ms"),
    ]
    width = max(len(name) for name, _ in rows)
    title = f"{report.dataset} (sha256 {report.sha256[:12]}), {machine()}"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
