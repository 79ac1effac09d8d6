"""``expert-router bench gateway``: what our server adds to an answer, and what LiteLLM's proxy does."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from expert_router.commands.measuring import TEST_SPLIT, machine, numbers
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from expert_router.evaluation.gateway import GatewayResult, Way
    from expert_router.settings import Settings

HELP = "what the gateway adds, beside LiteLLM's proxy"
START_WITHIN_S = 180.0
WARM_UP = {"clients": 8, "rounds": 1, "seconds": 2.0}
LONGEST_S = 600


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--clients", default="1,4,16,64", metavar="N,N", help="how many ask at once (1,4,16,64)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of a round, for each way (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all ways by turns (default: 3)")
    parser.add_argument(
        "--litellm",
        type=Path,
        metavar="PYTHON",
        help="the python of an environment with litellm[proxy]: measure it too",
    )


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.artifacts import load_experts
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.gateway_processes import installed_packages

    clients = _clients(args)
    packages = {"ours": installed_packages(sys.executable, "expert-router")}
    if args.litellm is not None:
        packages["litellm"] = installed_packages(args.litellm, "litellm[proxy]")
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    questions = [example.query for example in examples if len(example.experts) == 1]
    expert = min(load_experts(settings.resolve(settings.paths.experts), settings.home))
    before = signal.signal(signal.SIGTERM, _leave)  # or whoever ends this would leave the servers running
    try:
        with ExitStack() as servers:
            results, memory = _measure(args, clients, questions, expert, servers)
    finally:
        signal.signal(signal.SIGTERM, before)
    if args.json:
        about = {"machine": machine(), "router": settings.router.name, "packages": packages, "memory_bytes": memory}
        print(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=2))
    else:
        _show(results, settings.router.name, packages, memory)
    return 0


def _clients(args: Namespace) -> list[int]:
    clients = numbers(args.clients, "--clients")
    if min(*clients, args.rounds) < 1 or not 0 < args.seconds <= LONGEST_S:
        raise ConfigError(f"bench gateway takes clients and rounds from 1 on, and rounds of at most {LONGEST_S} s.")
    return clients


def _measure(
    args: Namespace, clients: list[int], questions: list[str], expert: str, servers: ExitStack
) -> tuple[list[GatewayResult], dict[str, int | None]]:
    from expert_router.evaluation import gateway_processes as processes
    from expert_router.evaluation.gateway import Way

    folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
    upstream, is_alive = servers.enter_context(processes.upstream())
    ours = servers.enter_context(processes.ours(upstream, args.config, folder))
    gateways = [ours]
    ways = [Way("direct", upstream, "fixed", is_alive)]
    ways += [Way(way, ours.port, model, ours.running) for way, model in (("named", expert), ("auto", "auto"))]
    if args.litellm is not None:
        other = servers.enter_context(processes.litellm(upstream, args.litellm, folder))
        gateways.append(other)
        ways.append(Way("litellm", other.port, processes.LITELLM_MODEL, other.running))
    results = asyncio.run(_ask_all(args, clients, questions, ways))
    return results, {gateway.name: gateway.memory_bytes() for gateway in gateways}


async def _ask_all(
    args: Namespace, clients: list[int], questions: list[str], ways: Sequence[Way]
) -> list[GatewayResult]:
    from expert_router.evaluation.gateway import measure_gateways, wait_until_it_answers

    for way in ways:
        await wait_until_it_answers(way, questions[0], START_WITHIN_S)
    asked = {"rounds": args.rounds, "seconds": args.seconds}
    results = []
    for streamed in (False, True):
        warm_up = {**WARM_UP, "seconds": min(WARM_UP["seconds"], args.seconds)}
        await measure_gateways(ways, questions, streamed=streamed, **warm_up)
        for count in clients:
            print(f"{count} clients, {_kind(streamed)} …", file=sys.stderr, flush=True)
            results += await measure_gateways(ways, questions, clients=count, streamed=streamed, **asked)
    return results


def _show(
    results: Sequence[GatewayResult], router: str, packages: Mapping[str, int], memory: Mapping[str, int | None]
) -> None:
    from expert_router.evaluation.gateway_processes import HOW_TO_INSTALL

    print(f"{router} router   {machine()}   p50 / p99 in ms")
    print("clients  answer    way      answers/s    whole answer      added             first word, added  errors")
    for r in results:
        times = "".join(f"{low:>9.2f} / {high:<8.2f}" for low, high in (r.ms, r.added_ms, r.added_first_ms))
        print(f"{r.clients:>7}  {_kind(r.streamed):<9} {r.way:<8}{r.answers_per_s:>9.0f} {times}{r.errors:>5}")
    for name, count in packages.items():
        print(f"{name}: {count} packages, {(memory[name] or 0) / 1e6:.0f} MB resident after it")
    if "litellm" not in packages:
        print(f"To compare with LiteLLM's proxy: {HOW_TO_INSTALL}, then --litellm litellm/bin/python")


def _kind(streamed: bool) -> str:
    return "streamed" if streamed else "whole"


def _leave(*_: object) -> NoReturn:
    raise KeyboardInterrupt
