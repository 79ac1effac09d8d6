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

from expert_router.commands.measuring import TEST_SPLIT, machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Mapping, Sequence

    from expert_router.evaluation.gateway import GatewayResult, Way
    from expert_router.settings import Settings

HELP = "what the gateway adds, beside LiteLLM's proxy"
START_WITHIN_S = 180.0
WARM_UP_CLIENTS = 8
WARM_UP_S = 2.0


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
    try:
        clients = [int(count) for count in args.clients.split(",")]
    except ValueError:
        raise ConfigError(f"--clients takes numbers joined by commas, not {args.clients!r}.") from None
    if min(clients) < 1 or args.rounds < 1 or not 0 < args.seconds <= 600:  # noqa: PLR2004 - ten minutes a round
        raise ConfigError("bench gateway takes clients and rounds from 1 on, and rounds of at most 600 s.")
    return clients


def _measure(
    args: Namespace, clients: list[int], questions: list[str], expert: str, servers: ExitStack
) -> tuple[list[GatewayResult], dict[str, int | None]]:
    from expert_router.evaluation import gateway_processes as processes
    from expert_router.evaluation.gateway import Way

    folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
    upstream, is_alive = servers.enter_context(processes.upstream())
    gateways = [servers.enter_context(processes.ours(upstream, args.config, folder))]
    if args.litellm is not None:
        gateways.append(servers.enter_context(processes.litellm(upstream, args.litellm, folder)))
    ports = {gateway.name: gateway.port for gateway in gateways}
    running = {upstream: is_alive, **{gateway.port: gateway.running for gateway in gateways}}
    ways = [
        Way("direct", upstream, "fixed"),
        Way("named", ports["ours"], expert),
        Way("auto", ports["ours"], "auto"),
    ]
    if args.litellm is not None:
        ways.append(Way("litellm", ports["litellm"], processes.LITELLM_MODEL))
    results = asyncio.run(_ask_all(args, clients, questions, ways, running))
    return results, {gateway.name: gateway.memory_bytes() for gateway in gateways}


async def _ask_all(
    args: Namespace,
    clients: list[int],
    questions: list[str],
    ways: Sequence[Way],
    running: Mapping[int, Callable[[], bool]],
) -> list[GatewayResult]:
    from expert_router.evaluation.gateway import measure_gateways, wait_until_it_answers

    for way in ways:
        await wait_until_it_answers(way, questions[0], START_WITHIN_S, running[way.port])
    results = []
    for streamed in (False, True):
        await measure_gateways(
            ways, questions, clients=WARM_UP_CLIENTS, streamed=streamed, rounds=1, seconds=min(WARM_UP_S, args.seconds)
        )
        for count in clients:
            print(f"{count} clients, {_kind(streamed)} …", file=sys.stderr, flush=True)
            results += await measure_gateways(
                ways, questions, clients=count, streamed=streamed, rounds=args.rounds, seconds=args.seconds
            )
    return results


def _show(
    results: Sequence[GatewayResult], router: str, packages: dict[str, int], memory: dict[str, int | None]
) -> None:
    from expert_router.evaluation.fake_upstream import WORDS
    from expert_router.evaluation.gateway_processes import HOW_TO_INSTALL

    print(f"An answer of {len(WORDS)} pieces, {router} router   {machine()}")
    print("clients  answer    way      answers/s    p50 / p99 ms       added        first word, added   errors")
    for r in results:
        times = "".join(f"{low:>9.2f} / {high:<8.2f}" for low, high in (r.ms, r.added_ms, r.added_first_ms))
        print(f"{r.clients:>7}  {_kind(r.streamed):<9} {r.way:<8}{r.answers_per_s:>9.0f} {times}{r.errors:>5}")
    for name, count in packages.items():
        resident = memory[name]
        held = "unknown memory" if resident is None else f"{resident / 1e6:.0f} MB resident after it"
        print(f"{name}: {count} packages, {held}")
    if "litellm" not in packages:
        print(f"To compare with LiteLLM's proxy: {HOW_TO_INSTALL}, then --litellm litellm/bin/python")


def _kind(streamed: bool) -> str:
    return "streamed" if streamed else "whole"


def _leave(*_: object) -> NoReturn:
    raise KeyboardInterrupt
