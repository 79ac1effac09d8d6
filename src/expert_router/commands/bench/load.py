"""``expert-router bench load``: a running server under load over HTTP, ours or another OpenAI-compatible one."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import TEST_SPLIT, machine, new_folder
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.http_load import Level, Target
    from expert_router.evaluation.load_report import LevelResult, ServiceLevel
    from expert_router.settings import Settings

HELP = "a running server under load over HTTP"
SECONDS = 30.0
SILENCE_S = 120.0
INTERRUPTED = 130


def add_arguments(parser: ArgumentParser) -> None:
    url, mix = "http://127.0.0.1:8000", "sleep=0.4,cars=0.4,other=0.2"
    parser.add_argument("--url", default=url, help=f"ours, or any OpenAI-compatible server (default: {url})")
    parser.add_argument("--key", help="what the server asks for (default: EXPERT_ROUTER_KEY)")
    parser.add_argument("--model", metavar="NAME", help="default: auto, or another server's first")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", default="1,8,32", metavar="N,N", help="clients at once (default: 1,8,32)")
    load.add_argument("--rate", metavar="R,R", help="instead, requests sent a second, however many are unanswered")
    parser.add_argument("--mix", default=mix, help=f"shares of the test split's kinds of questions (default: {mix})")
    parser.add_argument("--distribution", choices=["uniform", "zipf"], default="zipf", help="default: zipf")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--seconds", type=float, metavar="S", help=f"at each of them (default: {SECONDS:g})")
    until.add_argument("--requests", type=int, metavar="N", help="instead, at each of them")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="an answer's length (default: 64)")
    parser.add_argument("--ignore-eos", action="store_true", help="exactly that length")
    parser.add_argument("--no-cache", action="store_true", help="new answers only (Cache-Control: no-store)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--slo-first-token-ms", type=float, default=2000.0, metavar="MS", help="default: 2000")
    parser.add_argument(
        "--slo-inter-token-ms", type=float, default=200.0, metavar="MS", help="between two tokens, default: 200"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: below runs/)")


def run(args: Namespace, settings: Settings) -> int:
    """Interrupted, it reports what was measured until then."""
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.load_report import ServiceLevel, summarise
    from expert_router.evaluation.mix import draw, read_mix

    loads = _checked(args)
    args.key = args.key or settings.key
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    shares = read_mix(args.mix, examples)
    first = [next(example for example in examples if example.kind == kind) for kind in shares]
    target = asyncio.run(_try(args, first))
    folder = new_folder(args.output, settings, "load")
    questions = draw(examples, shares, args.seed, zipf=args.distribution == "zipf")
    levels: list[Level] = []
    interrupted = False
    try:
        asyncio.run(_measure(args, target, loads, questions, levels))
    except KeyboardInterrupt:
        interrupted = True
    wanted = ServiceLevel(args.slo_first_token_ms, args.slo_inter_token_ms)
    results = [summarise(level, wanted) for level in levels if level.samples]
    if not results:
        folder.rmdir()
    else:
        _report(args, folder, _about(args, target, wanted, interrupted=interrupted), results)
    return INTERRUPTED if interrupted else 0


def _checked(args: Namespace) -> list[Level]:
    """The levels to be measured. Raises ``ConfigError`` for what cannot be."""
    from expert_router.evaluation.http_load import Level

    if args.rate is None:
        loads = [Level(int(clients)) for clients in _numbers(args.concurrency, "--concurrency", int)]
    else:
        loads = [Level(0, rate=rate) for rate in _numbers(args.rate, "--rate", float)]
    for option in ("seconds", "requests", "max_tokens", "seed", "slo_first_token_ms", "slo_inter_token_ms"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            raise ConfigError(f"--{option.replace('_', '-')} takes a number above 0, not {value}.")
    return loads


def _numbers(text: str, option: str, kind: type[int | float]) -> list[float]:
    try:
        found = sorted({kind(number) for number in text.split(",")})
    except ValueError:
        found = []
    if not found or not 0 < found[0] <= found[-1] < inf:
        raise ConfigError(f"{option} takes numbers above 0, joined by commas, not {text!r}.")
    return found


async def _try(args: Namespace, questions: Sequence[LabelledQuestion]) -> Target:
    """Find the server and have it answer, past its cache, which loads its models. Raises ``ConfigError``."""
    from expert_router.evaluation.http_load import Asking, ask, find_target, open_client

    async with open_client(args.url, SILENCE_S, args.key) as client:
        target = await find_target(client, args.model)
        for question in questions:
            sample = await ask(client, target, Asking(args.max_tokens, no_cache=True), question)
            if sample.error:
                status = f"HTTP {sample.status}, " if sample.status else ""
                raise ConfigError(f"{target.url} does not answer a first question: {status}{sample.error}")
    return target


async def _measure(
    args: Namespace,
    target: Target,
    loads: Sequence[Level],
    questions: Iterator[LabelledQuestion],
    levels: list[Level],
) -> None:
    """Fill ``levels``, one after the other; after one without any answer there is no other."""
    from tqdm import tqdm

    from expert_router.evaluation.http_load import Asking, ask, measure_level, measure_rate, open_client

    how = Asking(args.max_tokens, args.ignore_eos, args.no_cache, wait_s=0 if args.rate else int(SILENCE_S))
    seconds = SECONDS if args.seconds is None and args.requests is None else args.seconds
    async with open_client(args.url, SILENCE_S, args.key) as client:
        for level in loads:
            levels.append(level)
            name = f"{level.clients} clients" if level.rate is None else f"{level.rate:g} requests a second"
            measure = measure_level if level.rate is None else partial(measure_rate, seed=args.seed)
            with tqdm(total=args.requests, desc=name, unit="request", disable=None) as bar:
                await measure(
                    level,
                    lambda question: ask(client, target, how, question),
                    questions,
                    requests=args.requests,
                    seconds=seconds,
                    done=bar.update,
                )
            if all(sample.error for sample in level.samples):
                return


def _about(args: Namespace, target: Target, wanted: ServiceLevel, *, interrupted: bool) -> dict[str, str]:
    kept = "not used (no-store)" if args.no_cache else "used where the server has one"
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z") + (", interrupted" if interrupted else ""),
        "server": f"{target.url}, model {target.model}" + ("" if target.ours else ", not an expert-router"),
        "questions": f"{args.mix}, {args.distribution}, of the test split, seed {args.seed}",
        "answers": f"{'exactly' if args.ignore_eos else 'at most'} {args.max_tokens} tokens; cache {kept}",
        "service level": f"first token within {wanted.first_token_ms:g} ms, then {wanted.inter_token_ms:g} ms a token",
        "clients on": machine(),
    }


def _report(args: Namespace, folder: Path, about: dict[str, str], results: list[LevelResult]) -> None:
    from expert_router.evaluation.load_report import load_as_markdown, load_as_object
    from expert_router.evaluation.report import write_both

    pictures = {}
    try:
        from expert_router.evaluation.pictures import draw_load
    except ImportError as error:
        print(f"No picture ({error}): pip install 'expert-router[evaluate]'", file=sys.stderr)
    else:
        pictures = draw_load(folder, results)
    content = load_as_object(about, results)
    write_both(folder, load_as_markdown(about, results, pictures), content)
    print(json.dumps(content, indent=2) if args.json else load_as_markdown(about, results, {}))
    print(f"Saved in {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}.", file=sys.stderr)
