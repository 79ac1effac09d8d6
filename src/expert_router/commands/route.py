"""``expert-router route``: which expert a question would go to, and why. Loads no language model."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from expert_router.facade import ExpertRouter
    from expert_router.types import Decision

HELP = "say which expert a question would go to, and why"
BAR_WIDTH = 30


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", nargs="*", help="the question")
    parser.add_argument(
        "--history", action="append", default=[], metavar="TEXT", help="an earlier user turn; repeatable"
    )
    parser.add_argument("--router", metavar="NAME", help="another router than the configured one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--input", metavar="F.jsonl", help='a file of {"query", "history"?} lines; - is standard input')
    parser.add_argument("--output", metavar="G.jsonl", default="-", help="where the decisions go (default: -)")


def main(args: Namespace) -> int:
    import expert_router
    from expert_router.commands.batch import question_in, run_batch

    query = question_in(args, "route")
    with expert_router.open(args.config, router=args.router) as system:

        def answer(item: dict[str, Any]) -> dict[str, Any]:
            return _result(*_timed(system, item["query"], item.get("history", [])))

        if args.input:
            return run_batch(args.input, args.output, answer, workers=1)
        decision, latency_ms = _timed(system, query, args.history)
        if args.json:
            print(json.dumps({"query": query, **_result(decision, latency_ms)}, ensure_ascii=False))
        else:
            _show(decision, latency_ms)
    return 0


def _timed(system: ExpertRouter, query: str, history: Sequence[str]) -> tuple[Decision, float]:
    """The decision and the milliseconds it took."""
    started = time.perf_counter()
    decision = system.route(query, history)
    return decision, (time.perf_counter() - started) * 1000


def _result(decision: Decision, latency_ms: float) -> dict[str, Any]:
    from expert_router.serving.objects import decision_object

    return {"decision": decision_object(decision), "latency_ms": round(latency_ms, 3)}


def _show(decision: Decision, latency_ms: float) -> None:
    print(f"{decision.kind}: {', '.join(decision.experts) or 'no expert'}   ({latency_ms:.1f} ms)")
    print(decision.reason)
    if decision.scores is not None:
        for name, p in [*decision.scores.ranked(), ("none", decision.scores.none)]:
            print(f"  {name:<12}{p:6.1%} {'█' * round(p * BAR_WIDTH)}")
