"""``expert-router bench same-answer``: what the cache of similar questions gives again, and what it takes to look."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.evaluation.same_answer import Pair
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings

HELP = "whether a question asks the same as an earlier one, on judged pairs, and what it takes to look"
KEPT = 1000
"""Questions while looking is timed."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE", help="judged pairs (default: data/same_answer/pairs.csv)")
    parser.add_argument("--wrong", action="store_true", help="list the pairs that were judged wrongly")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.caching.same_answer import same_answer
    from expert_router.evaluation.same_answer import measure_same_answer, read_pairs
    from expert_router.serving.parts import build_parts

    parts = build_parts(settings, progress=True)
    pairs = read_pairs(args.data or settings.resolve(settings.paths.data) / "same_answer/pairs.csv")
    least = settings.cache.semantic_similarity

    def judge(first: str, second: str) -> bool:
        near = float(parts.encoder.encode(first) @ parts.encoder.encode(second)) >= least
        return near and same_answer(first, second)

    results = measure_same_answer(pairs, judge)
    p50_ms, p95_ms = asyncio.run(_find_ms(parts, pairs))
    if args.json:
        about = {"machine": machine(), "kept": KEPT, "find_ms": {"p50": p50_ms, "p95": p95_ms}}
        print(json.dumps({**about, "splits": [asdict(result) for result in results]}, indent=2))
        return 0
    for result in results:
        for label, each in (("the same answer, given again", result.hits), ("another answer, given", result.false)):
            if each is not None:
                bounds = f"95 % interval {each.low:.1%} to {each.high:.1%}"
                print(f"{result.split:<12} {label:<30}{each.value:>7.1%} of {each.n:<5}{bounds}")
        for pair in result.wrong if args.wrong else []:
            print(f"  ! {'same' if pair.same else 'different'}: {pair.first!r} and {pair.second!r}")
    print(f"looked up among {KEPT} questions: p50 {p50_ms:.2f} ms  p95 {p95_ms:.2f} ms   {machine()}")
    return 0


async def _find_ms(parts: Parts, pairs: list[Pair]) -> tuple[float, float]:
    """The question's embedding left out: the router has made it."""
    import numpy as np

    from expert_router.caching.similar import SimilarAnswers
    from expert_router.types import Chunk, Usage

    least = parts.settings.cache.semantic_similarity
    answers = SimilarAnswers(parts.encoder, similarity=least, max_answers=KEPT, ttl_s=3600)
    whole = [Chunk("x", "stop", Usage(1, 1))]
    for number in range(KEPT):
        pair = pairs[number % len(pairs)]
        await answers.keep("scope", pair.first + " " * (number // len(pairs)), (), whole)
    seconds = []
    for pair in pairs:
        parts.encoder.encode(pair.second)
        started = time.perf_counter()
        await answers.find("scope", pair.second)
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return float(p50), float(p95)
