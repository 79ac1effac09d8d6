"""``expert-router bench``: the tables of docs/benchmarks.md, measured on this machine."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands import bench_additions, bench_cache
from expert_router.commands.measuring import machine, router_and_policy
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.load import LoadResult
    from expert_router.evaluation.routing import RoutingReport
    from expert_router.settings import Settings

HELP = "measure routers and engines on this machine"
JOINED = 500
ZERO_SHOT_QUESTIONS = 20
"""The zero-shot baseline takes a hundred times longer a question, so it is timed on fewer."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("routers", "dialogues", "stability", "parts", "additions", "engine", "cache"),
        help="routers: accuracy and latency; dialogues: each turn of conversations; stability: the same decision "
        "however a question is typed; parts: how questions for several experts are taken apart; additions: what "
        "few examples of a new expert teach; engine: speed under load; cache: what a kept answer costs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    group = parser.add_argument_group("routers")
    group.add_argument("--routers", default="embedding,lexical", metavar="NAMES", help="default: embedding,lexical")
    group.add_argument(
        "--data", nargs="*", type=Path, metavar="FILE", help="labelled CSV or JSON lines (default: the test split)"
    )
    group.add_argument("--wrong", action="store_true", help="list the questions that went wrong")
    group.add_argument(
        "--zero-shot-shape",
        action="store_true",
        help="also time zero_shot on a random model of BART-large-mnli's exact shape (needs the zero-shot extra)",
    )
    group = parser.add_argument_group("engine")
    group.add_argument("--clients", default="1,8,32", metavar="N,N", help="how many ask at once (default: 1,8,32)")
    group.add_argument("--requests", type=int, default=4, metavar="N", help="answers per client (default: 4)")
    group.add_argument("--max-tokens", type=int, default=64, metavar="N", help="an answer's length (default: 64)")
    group.add_argument("--model", default="auto", metavar="NAME", help="auto (default), an expert, or general")
    group.add_argument(
        "--experts",
        type=int,
        metavar="N",
        help="ask N experts in turn, copies of those there are included, whose models stay in the cache",
    )
    group = parser.add_argument_group("cache")
    group.add_argument("--answers", type=int, default=2000, metavar="N", help="how many are timed (default: 2000)")


def main(args: Namespace) -> int:
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    bench = {
        "routers": _bench_routers,
        "dialogues": _bench_dialogues,
        "stability": _bench_stability,
        "parts": _bench_parts,
        "additions": bench_additions.run,
        "engine": _bench_engine,
        "cache": bench_cache.run,
    }[args.what]
    return bench(args, settings)


def _questions(args: Namespace, settings: Settings) -> list[LabelledQuestion]:
    from expert_router.data.labelled import read_labelled

    files = args.data or [settings.resolve(settings.paths.data) / "processed/routing_test.csv"]
    return [example for path in files for example in read_labelled(path)]


def _bench_dialogues(args: Namespace, settings: Settings) -> int:
    from expert_router.data.dialogues import read_dialogues
    from expert_router.evaluation.dialogues import measure_dialogues

    (path,) = args.data or [settings.resolve(settings.paths.data) / "dialogues/test.jsonl"]
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


def _bench_stability(args: Namespace, settings: Settings) -> int:
    from expert_router.evaluation.stability import measure_stability, read_paraphrases

    (path,) = args.data or [settings.resolve(settings.paths.data) / "stability/paraphrases.csv"]
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


def _bench_parts(args: Namespace, settings: Settings) -> int:
    from expert_router.evaluation.parts import measure_parts

    router, _ = router_and_policy(settings)
    report = measure_parts(_questions(args, settings), lambda text: router.score(text).experts, count=JOINED)
    if args.json:
        print(json.dumps({"machine": machine(), **asdict(report)}, indent=2))
        return 0
    p50, p95 = report.latency_ms
    print(f"{report.count} pairs of questions joined as people do   p50 {p50:.1f} ms  p95 {p95:.1f} ms   {machine()}")
    print(f"  cut where they were joined       {report.exact / report.count:.1%}")
    print(f"  cut elsewhere, experts right     {report.near / report.count:.1%}")
    print(f"  not cut: both get the whole      {report.whole / report.count:.1%}")
    return 0


def _bench_routers(args: Namespace, settings: Settings) -> int:
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


def _bench_engine(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.load import resident_mb, with_copies
    from expert_router.serving.build import build_system
    from expert_router.serving.parts import Parts, build_parts

    try:
        clients = [int(count) for count in args.clients.split(",")]
    except ValueError:
        raise ConfigError(f"--clients takes numbers joined by commas, not {args.clients!r}.") from None
    examples = read_labelled(settings.resolve(settings.paths.data) / "processed/routing_test.csv")
    questions = [example.query for example in examples if len(example.experts) == 1]
    parts, models = build_parts(settings, progress=True), [args.model]
    with tempfile.TemporaryDirectory() as folder:
        if args.experts:
            copied = with_copies(parts.experts, settings.engine.base_model, args.experts, Path(folder))
            parts, models = Parts(settings, {**parts.experts, **copied}, progress=True), list(copied)
        dispatcher = build_system(parts, logged=False, cached=False)
        before = resident_mb()
        load_s, memory, results = asyncio.run(_measure(dispatcher, questions, clients, models, args))
    loaded_mb, resident = (taken - before for taken in memory)
    if args.json:
        about = {"machine": machine(), "engine": settings.engine.name, "base_model": settings.engine.base_model}
        taken = {"load_s": load_s, "loaded_mb": loaded_mb, "resident_mb": resident}
        print(json.dumps({**about, **taken, "results": [asdict(result) for result in results]}, indent=2))
        return 0
    print(f"\n{settings.engine.name}, {settings.engine.base_model}, {args.max_tokens} tokens an answer   {machine()}")
    print(f"ready in {load_s:.1f} s; {loaded_mb} MB taken then, {resident} MB in the end")
    print("clients   tokens/s   first token p50 / p95      whole answer p50 / p95   CPU")
    for r in results:
        first, whole = r.first_token_s, r.answer_s
        first_ms = f"{first[0] * 1000:>12.0f} / {first[1] * 1000:.0f} ms"
        print(
            f"{r.clients:>7}{r.tokens_per_s:>11.0f}{first_ms:<28}{whole[0]:>9.2f} / {whole[1]:.2f} s{r.cpu_s:>11.2f} s"
        )
    return 0


async def _measure(
    dispatcher: Any, questions: list[str], clients: list[int], models: list[str], args: Namespace
) -> tuple[float, tuple[int, int], list[LoadResult]]:
    from expert_router.evaluation.load import measure_load, resident_mb

    async def ask(clients: int, requests: int) -> LoadResult:
        return await measure_load(
            dispatcher, questions, clients=clients, requests=requests, max_tokens=args.max_tokens, models=models
        )

    try:
        started = time.perf_counter()
        for name in models if args.experts else []:
            await dispatcher.engine.warm_up(dispatcher.experts[name])
        await ask(1, 2)  # loads the model
        load_s, loaded_mb = time.perf_counter() - started, resident_mb()
        results = [await ask(count, count * args.requests) for count in clients]
        return load_s, (loaded_mb, resident_mb()), results
    finally:
        await dispatcher.close()
