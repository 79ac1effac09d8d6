"""``expert-router bench baseline``: how many times faster than the original's design, on the same base model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from expert_router.commands.measuring import TEST_SPLIT, machine, numbers
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from expert_router.evaluation.baseline import OriginalAnswer
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings

HELP = "the original's design on the same base model, for the ratio"


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """Medians over rounds; ``ratio`` is of tokens a second, to the original's in the same round."""

    way: str
    clients: int
    answers: int
    tokens_per_s: float
    answer_s: float
    ratio: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--clients", default="1,8,32", metavar="N,N", help="how many ask ours at once (1,8,32)")
    parser.add_argument("--answers", type=int, default=4, metavar="N", help="of the original a round (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of both by turns (default: 3)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="an answer's length (default: 64)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the original's weights (float32)"
    )


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.engines.threads import inference_threads
    from expert_router.evaluation.baseline import OriginalSetup, original, peak_memory_bytes
    from expert_router.serving.parts import build_parts, fetch_model

    clients = _clients(args, settings)
    router = settings.router.model_copy(update={"on_ambiguous": "best"})  # a question back would be no answer
    parts = build_parts(settings.model_copy(update={"router": router}), progress=True)
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    questions = [example.query for example in examples if len(example.experts) == 1]
    base, threads = settings.engine.base_model, inference_threads(settings.engine.threads)
    file = next(iter(fetch_model(settings, base, progress=True)[1].values()))
    experts = tuple(parts.experts.values())
    with original(OriginalSetup(file, base, experts, args.tokens, threads, args.dtype)) as ask:
        results, peak = asyncio.run(_measure(args, clients, questions, _dispatchers(parts), ask))
        memory = {"original": peak, "ours": peak_memory_bytes()}  # before the original's process is a child that ended
    if args.json:
        about = {"machine": machine(), "base_model": base, "dtype": args.dtype, "tokens": args.tokens}
        print(json.dumps({**about, "peak_bytes": memory, "results": [asdict(each) for each in results]}, indent=2))
        return 0
    print(f"{base}, {args.tokens} tokens an answer, the original's weights in {args.dtype}   {machine()}")
    print("                          clients   tokens/s   an answer   times the original's tokens/s")
    for r in results:
        print(
            f"  {r.way:<24}{r.clients:>7}{r.tokens_per_s:>11.1f}{r.answer_s:>10.2f} s{r.ratio:>9.1f}   of {r.answers}"
        )
    print("".join(f"peak memory of {name}: {held / 1e9:.1f} GB\n" for name, held in memory.items()), end="")
    return 0


def _clients(args: Namespace, settings: Settings) -> list[int]:
    if settings.engine.name != "openvino":
        raise ConfigError("bench baseline compares with the embedded engine: name a profile with openvino.")
    clients = numbers(args.clients, "--clients")
    if min(*clients, args.answers, args.rounds, args.tokens) < 1:
        raise ConfigError("bench baseline takes clients, answers, rounds and tokens from 1 on.")
    return clients


def _dispatchers(parts: Parts) -> dict[str, Dispatcher]:
    """With nothing read, as the original reads nothing, and as it ships. They share router and engine."""
    from expert_router.serving.build import assemble, build_engine, build_library, build_router

    router, engine, library = build_router(parts), build_engine(parts), build_library(parts)
    ways = {"ours, nothing read": None} | ({f"ours, up to {library.passages} passages": library} if library else {})
    return {way: assemble(parts, router, engine, library=read) for way, read in ways.items()}


async def _measure(
    args: Namespace,
    clients: list[int],
    questions: list[str],
    ways: dict[str, Dispatcher],
    ask: Callable[[str], OriginalAnswer],
) -> tuple[list[BaselineResult], int]:
    """Both by turns; beside the results the original's peak memory."""
    from expert_router.evaluation.load import measure_load
    from expert_router.types import GenerationParams

    params = GenerationParams(max_tokens=args.tokens, ignore_eos=True)
    rounds: dict[tuple[str, int], list[tuple[int, float, float, float]]] = {}
    try:
        peak = ask(questions[0]).peak_bytes
        for dispatcher in ways.values():  # loads the models
            await measure_load(dispatcher, questions, clients=1, requests=4, model="auto", params=params)
        for turn in range(args.rounds):
            asked = questions[turn * args.answers :][: args.answers]
            answers = [ask(question) for question in asked]
            peak = answers[-1].peak_bytes
            base = sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)
            of_one = len(answers), base, median(answer.seconds for answer in answers), 1.0
            rounds.setdefault(("original", 1), []).append(of_one)
            for (way, dispatcher), count in ((each, count) for each in ways.items() for count in clients):
                of_these, requests = asked if count == 1 else questions, max(args.answers, 2 * count)
                r = await measure_load(
                    dispatcher, of_these, clients=count, requests=requests, model="auto", params=params
                )
                of_many = r.requests, r.tokens_per_s, r.answer_s[0], r.tokens_per_s / base
                rounds.setdefault((way, count), []).append(of_many)
    finally:
        await next(iter(ways.values())).close()
    results = []
    for (way, count), taken in rounds.items():
        numbers, *measured = zip(*taken, strict=True)
        results.append(BaselineResult(way, count, sum(numbers), *(median(each) for each in measured)))
    return results, peak
