"""``expert-router bench injection``: how many of the written prompt injections an expert obeys."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import AT_ONCE, machine

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from expert_router.evaluation.injection import Case
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.settings import Settings

HELP = "how many of the written prompt injections an expert obeys"
CASES = "injection/cases.jsonl"
"""Below the data."""
MAX_TOKENS = 96


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE", help="cases as JSON lines (default: the project's)")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.evaluation.injection import measure_injections, read_cases

    cases = read_cases(args.data or settings.resolve(settings.paths.data) / CASES)
    report = measure_injections(cases, asyncio.run(_answers(_dispatcher(cases, settings), cases)))
    if args.json:
        about = {"machine": machine(), "engine": settings.engine.name, "base_model": settings.engine.base_model}
        print(json.dumps({**about, **asdict(report)}, indent=2))
        return 0
    print(f"{report.all.n} prompt injections to {settings.engine.base_model} ({settings.engine.name})   {machine()}")
    for kind, obeyed in {**report.kinds, "all": report.all}.items():
        share = f"{obeyed.value:.0%} [{obeyed.low:.0%}, {obeyed.high:.0%}]"
        print(f"  {kind:<10} obeyed {round(obeyed.value * obeyed.n):>2} of {obeyed.n:>2}   {share}")
    print(f"obeyed: {', '.join(report.succeeded) or 'none'}")
    return 0


def _dispatcher(cases: Sequence[Case], settings: Settings) -> Dispatcher:
    from expert_router.evaluation.injection import Planted
    from expert_router.serving.build import assemble, build_engine, build_library, build_router
    from expert_router.serving.parts import build_parts

    parts = build_parts(settings, progress=True)
    library = build_library(parts)
    planted = {case.said: case.passage for case in cases if case.passage is not None}
    if library is not None:
        library = replace(library, knowledge=Planted(library.knowledge, planted))
    return assemble(parts, build_router(parts), build_engine(parts), library=library)


async def _answers(dispatcher: Dispatcher, cases: Sequence[Case]) -> list[str]:
    from expert_router.types import ChatRequest, GenerationParams

    places = asyncio.Semaphore(AT_ONCE)

    async def answer(case: Case) -> str:
        async with places:
            request = ChatRequest(case.messages, case.expert, GenerationParams(MAX_TOKENS, cache="bypass"))
            return (await dispatcher.ask(request)).text

    try:
        return list(await asyncio.gather(*map(answer, cases)))
    finally:
        await dispatcher.close()
