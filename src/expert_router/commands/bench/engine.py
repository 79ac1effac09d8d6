"""``expert-router bench engine``: first token, whole answer and tokens a second, as clients are added."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import TEST_SPLIT, machine, numbers

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.evaluation.load import LoadResult
    from expert_router.settings import Settings

HELP = "an engine's speed under load"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--clients", default="1,8,32", metavar="N,N", help="how many ask at once (default: 1,8,32)")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="answers per client (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="an answer's length (default: 64)")
    parser.add_argument("--natural", action="store_true", help="let answers end as they end, before that length too")
    parser.add_argument("--model", default="auto", metavar="NAME", help="auto (default), an expert, or general")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.serving.build import build_dispatcher

    clients = numbers(args.clients, "--clients")
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    questions = [example.query for example in examples if len(example.experts) == 1]
    results = asyncio.run(
        _measure(build_dispatcher(settings, progress=True, logged=False, cached=False), questions, clients, args)
    )
    if args.json:
        about = {"machine": machine(), "engine": settings.engine.name, "base_model": settings.engine.base_model}
        about["answers"] = _length(args)
        print(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=2))
        return 0
    print(f"\n{settings.engine.name}, {settings.engine.base_model}, {_length(args)}   {machine()}")
    print("clients   tokens/s   first token p50 / p95      whole answer p50 / p95")
    for r in results:
        first, whole = r.first_token_s, r.answer_s
        first_ms = f"{first[0] * 1000:>12.0f} / {first[1] * 1000:.0f} ms"
        print(f"{r.clients:>7}{r.tokens_per_s:>11.0f}{first_ms:<28}{whole[0]:>9.2f} / {whole[1]:.2f} s")
    return 0


def _length(args: Namespace) -> str:
    return f"{'at most' if args.natural else 'exactly'} {args.max_tokens} tokens an answer"


async def _measure(dispatcher: Any, questions: list[str], clients: list[int], args: Namespace) -> list[LoadResult]:
    from expert_router.evaluation.load import measure_load
    from expert_router.types import GenerationParams

    params = GenerationParams(args.max_tokens, ignore_eos=not args.natural)

    async def ask(clients: int, requests: int) -> LoadResult:
        return await measure_load(
            dispatcher, questions, clients=clients, requests=requests, model=args.model, params=params
        )

    try:
        await ask(1, 2)  # loads the model
        return [await ask(count, count * args.requests) for count in clients]
    finally:
        await dispatcher.close()
