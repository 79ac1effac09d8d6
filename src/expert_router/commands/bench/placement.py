"""``expert-router bench placement``: affine placement beside placement by chance, on replicas that hold few experts."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.evaluation.placement import Load, Placed, Summary
    from expert_router.settings import Settings
    from expert_router.types import Expert

HELP = "on Ray: experts where they are loaded, beside by chance"
PLACEMENTS = ("random", "affine")
KV_CACHE_BYTES = 64 * 1024**2
NAME = "bench-placement"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="engines (default: 2)")
    parser.add_argument("--experts", type=int, default=4, metavar="N", help="each a model of its own (default: 4)")
    parser.add_argument("--hold", type=int, default=2, metavar="N", help="experts that an engine holds (default: 2)")
    parser.add_argument("--answers", type=int, default=60, metavar="N", help="a run (default: 60)")
    parser.add_argument("--concurrency", type=int, default=2, metavar="N", help="at once (default: 2)")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="of an answer (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each placement (default: 3)")


def run(args: Namespace, settings: Settings) -> int:
    """Adapters are merged, so that an expert that is not loaded costs loading it."""
    numbers = (args.replicas, args.experts, args.hold, args.answers, args.concurrency, args.tokens, args.rounds)
    if min(numbers) < 1:
        raise ConfigError("bench placement takes numbers from 1 on.")
    if settings.engine.name != "openvino":
        raise ConfigError("bench placement loads experts with the engine openvino: choose --config tiny or default.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: F401 - before a model is made ready
    except ImportError as error:
        raise ConfigError(f"bench placement needs Ray ({error}): pip install 'expert-router[ray]'") from error
    from expert_router.evaluation.placement import Load, summary

    settings = _holding(settings, args)
    load = Load(args.answers, args.concurrency, args.tokens, seed=0)
    runs = _measure(settings, _experts(settings, args.experts), load, args.rounds)
    results = [summary(placement, runs[placement]) for placement in PLACEMENTS]
    if args.json:
        about = {"machine": machine(), "base_model": settings.engine.base_model, "load": asdict(load)}
        print(json.dumps({**about, "results": [asdict(each) for each in results]}, indent=2))
    else:
        _show(results, settings, args)
    return 0


def _holding(settings: Settings, args: Namespace) -> Settings:
    """With room for so many models, and a half one that a loaded model may be larger."""
    from expert_router.serving.embedded import prepare_base_model

    base = prepare_base_model(settings, settings.engine.base_model, progress=True)
    room = int((args.hold + 0.5) * (base.size_bytes + KV_CACHE_BYTES))
    engine = {"stack_size": 0, "max_model_bytes": room, "kv_cache_bytes": KV_CACHE_BYTES, "threads": 1}
    ray = {"min_replicas": args.replicas, "max_replicas": args.replicas, "surge_percent": 0}
    return settings.model_copy(
        update={
            "engine": settings.engine.model_copy(update=engine),
            "ray": settings.ray.model_copy(update=ray),
        }
    )


def _experts(settings: Settings, count: int) -> list[Expert]:
    """The settings' own with an adapter for the base, under as many names as are needed."""
    from expert_router.serving.parts import build_parts

    base = settings.engine.base_model
    trained = [expert for expert in build_parts(settings).experts.values() if base in expert.adapters]
    if not trained:
        raise ConfigError(f"No expert has an adapter for {base}: train one, or choose --config tiny or default.")
    numbered = enumerate(islice(cycle(trained), count))
    return [replace(expert, name=f"{expert.name}-{number}", serve_as={}) for number, expert in numbered]


def _measure(settings: Settings, experts: list[Expert], load: Load, rounds: int) -> dict[str, list[Placed]]:
    """By turns. Each run is on engines that were just started, with every expert loaded once.

    It is another application each time: to one of the same name Ray hands the router that it had before.
    """
    import ray

    from expert_router.deploy.ray_serve import LOCAL, deployed_engine
    from expert_router.evaluation.placement import measure

    async def one_run(placement: str, number: int) -> Placed:
        chosen = settings.model_copy(update={"ray": settings.ray.model_copy(update={"placement": placement})})
        with deployed_engine(chosen, experts, f"{NAME}-{placement}-{number}") as engine:
            for expert in experts:
                await engine.warm_up(expert)
            return await measure(engine, experts, load)

    ray.init(LOCAL, num_cpus=settings.ray.max_replicas + 1, include_dashboard=False, log_to_driver=False)
    try:
        runs: dict[str, list[Placed]] = {placement: [] for placement in PLACEMENTS}
        for number in range(rounds):
            for placement in PLACEMENTS:
                runs[placement].append(asyncio.run(one_run(placement, number)))
        return runs
    finally:
        ray.shutdown()


def _show(results: list[Summary], settings: Settings, args: Namespace) -> None:
    shape = f"{args.experts} experts on {args.replicas} replicas that hold {args.hold} each, {args.concurrency} at once"
    print(f"\n{settings.engine.base_model}, {shape}   {machine()}")
    print("placement   first token: mean        p50        p95    answers/s   answers")
    for r in results:
        first = f"{r.mean_ms:>15.0f} ms {r.p50_ms:>7.0f} ms {r.p95_ms:>7.0f} ms"
        print(f"{r.placement:<12}{first}{r.answers_per_s:>13.2f}{r.answers:>10}")
    by_chance, affine = results
    print(
        f"Affine: first tokens {by_chance.mean_ms / affine.mean_ms:.1f} times as fast on average, "
        f"{affine.answers_per_s / by_chance.answers_per_s:.1f} times the answers."
    )
