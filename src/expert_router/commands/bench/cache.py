"""``expert-router bench cache``: what an answer costs that was given before, and what looking for it adds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.evaluation.caching import CacheLatency
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.settings import Settings

HELP = "what a kept answer costs"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--answers", type=int, default=2000, metavar="N", help="how many are timed (default: 2000)")


def run(args: Namespace, settings: Settings) -> int:
    """On the echo engine whatever the settings name, in the settings' store."""
    from expert_router.serving.build import build_dispatcher

    if settings.cache.store == "none":
        raise ConfigError("bench cache measures the store of the settings, and cache.store is none: name another.")
    if args.answers < 1:
        raise ConfigError(f"--answers takes a number from 1 on, not {args.answers}.")
    settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"name": "echo"})})
    dispatcher = build_dispatcher(settings, progress=True, logged=False, cached=False)
    with_cache = build_dispatcher(settings, progress=True, logged=False)
    results = asyncio.run(_measure(dispatcher, with_cache, args.answers))
    if args.json:
        about = {"machine": machine(), "store": settings.cache.store, "router": settings.router.name}
        print(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=2))
    else:
        _show(results, settings)
    return 0


async def _measure(bare: Dispatcher, caching: Dispatcher, answers: int) -> list[CacheLatency]:
    from expert_router.evaluation.caching import measure_dispatcher, measure_engine

    try:
        return [
            await measure_engine("engine alone", bare.engine, answers, same=False, expect=None),
            await measure_engine("engine, miss", caching.engine, answers, same=False, expect="miss"),
            await measure_engine("engine, hit", caching.engine, answers, same=True, expect="hit"),
            await measure_dispatcher("dispatcher, no cache", bare, answers, same=False, expect=None),
            await measure_dispatcher("dispatcher, miss", caching, answers, same=False, expect="miss"),
            await measure_dispatcher("dispatcher, hit", caching, answers, same=True, expect="hit"),
        ]
    finally:
        await caching.close()
        await bare.close()


def _show(results: list[CacheLatency], settings: Settings) -> None:
    from expert_router.evaluation.caching import TOKENS

    print(f"Answers of {TOKENS} tokens, {settings.cache.store}, {settings.router.name} router   {machine()}")
    print("                          p50        p95        p99")
    for r in results:
        print(f"  {r.way:<20}{r.p50_ms:>7.3f} ms {r.p95_ms:>7.3f} ms {r.p99_ms:>7.3f} ms   of {r.answers}")
