"""``expert-router bench baseline``: how many times faster than the original's design, on the same base model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from expert_router.commands.measuring import TEST_SPLIT, machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

    from expert_router.evaluation.baseline import OriginalProcess, OriginalSetup
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
    from expert_router.evaluation.baseline import original, peak_memory_bytes
    from expert_router.serving.parts import build_parts

    clients = _clients(args, settings)
    router = settings.router.model_copy(update={"on_ambiguous": "best"})  # a question back would be no answer
    parts = build_parts(settings.model_copy(update={"router": router}), progress=True)
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    questions = [example.query for example in examples if len(example.experts) == 1]
    with original(_setup(args, parts)) as baseline:
        results, original_bytes = asyncio.run(_measure(args, clients, questions, parts, baseline))
    memory = {"original": original_bytes, "ours": peak_memory_bytes()}
    if args.json:
        about = {"machine": machine(), "base_model": settings.engine.base_model, "dtype": args.dtype}
        about |= {"tokens": args.tokens, "peak_memory_bytes": memory}
        print(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=2))
    else:
        _show(args, results, memory, settings)
    return 0


def _clients(args: Namespace, settings: Settings) -> list[int]:
    if settings.engine.name != "openvino":
        raise ConfigError("bench baseline compares with the embedded engine: name a profile with openvino.")
    try:
        clients = [int(count) for count in args.clients.split(",")]
    except ValueError:
        raise ConfigError(f"--clients takes numbers joined by commas, not {args.clients!r}.") from None
    if min(*clients, args.answers, args.rounds, args.tokens) < 1:
        raise ConfigError("bench baseline takes clients, answers, rounds and tokens from 1 on.")
    return clients


def _setup(args: Namespace, parts: Parts) -> OriginalSetup:
    from expert_router.engines.threads import inference_threads
    from expert_router.evaluation.baseline import OriginalSetup
    from expert_router.serving.parts import fetch_model

    name = parts.settings.engine.base_model
    _, files = fetch_model(parts.settings, name, progress=True)
    adapters = {expert: known.adapter_for(name) for expert, known in parts.experts.items()}
    return OriginalSetup(
        next(iter(files.values())),
        {expert: None if adapter is None else adapter.path for expert, adapter in adapters.items()},
        {expert: known.title for expert, known in parts.experts.items()},
        {expert: known.instructions for expert, known in parts.experts.items()},
        args.tokens,
        inference_threads(parts.settings.engine.threads),
        args.dtype,
    )


async def _measure(
    args: Namespace, clients: list[int], questions: list[str], parts: Parts, baseline: OriginalProcess
) -> tuple[list[BaselineResult], int]:
    """Both by turns; the original's peak memory beside the results."""
    from expert_router.evaluation.load import measure_load
    from expert_router.types import GenerationParams

    params = GenerationParams(max_tokens=args.tokens, ignore_eos=True)
    ways = _dispatchers(parts)
    peak = baseline.ask(questions[0]).peak_bytes
    rounds: dict[tuple[str, int], list[tuple[int, float, float, float]]] = {}
    try:
        for dispatcher in ways.values():  # loads the models
            await measure_load(dispatcher, questions, clients=1, requests=4, model="auto", params=params)
        for turn in range(args.rounds):
            asked = questions[turn * args.answers :][: args.answers]
            answers = [baseline.ask(question) for question in asked]
            base = sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)
            seconds = median(answer.seconds for answer in answers)
            rounds.setdefault(("original", 1), []).append((len(answers), base, seconds, 1.0))
            peak = max(peak, *(answer.peak_bytes for answer in answers))
            for way, dispatcher in ways.items():
                for count in clients:
                    r = await measure_load(
                        dispatcher,
                        asked if count == 1 else questions,
                        clients=count,
                        requests=max(args.answers, 2 * count),
                        model="auto",
                        params=params,
                    )
                    rounds.setdefault((way, count), []).append(
                        (r.requests, r.tokens_per_s, r.answer_s[0], r.tokens_per_s / base)
                    )
    finally:
        await next(iter(ways.values())).close()  # they share the engine and the router
    results = []
    for (way, count), taken in rounds.items():
        numbers, *measured = zip(*taken, strict=True)
        results.append(BaselineResult(way, count, sum(numbers), *(median(each) for each in measured)))
    return results, peak


def _dispatchers(parts: Parts) -> Mapping[str, Dispatcher]:
    """As it ships, and with nothing read, as the original reads nothing."""
    from expert_router.serving.build import assemble, build_engine, build_library, build_router

    router, engine = build_router(parts), build_engine(parts)
    library = build_library(parts)
    ways = {"ours, nothing read": assemble(parts, router, engine, library=None)}
    if library is not None:
        ways[f"ours, {library.passages} passages read"] = assemble(parts, router, engine, library=library)
    return ways


def _show(args: Namespace, results: list[BaselineResult], memory: Mapping[str, int], settings: Settings) -> None:
    print(f"{settings.engine.base_model}, {args.tokens} tokens an answer, original in {args.dtype}   {machine()}")
    print("                          clients   tokens/s   an answer   times the original's tokens/s")
    for r in results:
        print(
            f"  {r.way:<24}{r.clients:>7}{r.tokens_per_s:>11.1f}{r.answer_s:>10.2f} s{r.ratio:>9.1f}   of {r.answers}"
        )
    for name, peak in memory.items():
        print(f"peak memory of {name}: {peak / 1e9:.1f} GB")
