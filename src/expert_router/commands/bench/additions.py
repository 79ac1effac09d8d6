"""``expert-router bench additions``: what a few examples of a new expert teach the router."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import TEST_SPLIT, machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.additions import AdditionResult
    from expert_router.settings import Settings
    from expert_router.types import Decision

HELP = "what few examples of a new expert teach the router"
NAME = "gardening"
DESCRIPTION = "Gardening: vegetables, fruit, flowers, soil, pests, tools and what to do in the garden through the year."
EVERY = 4
"""Of the test split's questions one in so many is asked: each draw asks them all."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder with examples.csv and test.csv (default: data/gardening)"
    )


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.additions import measure_additions
    from expert_router.live.proposal import read_examples

    if settings.router.name != "embedding":
        raise ConfigError("bench additions measures the embedding router: leave --config out.")
    folder = args.data or settings.resolve(settings.paths.data) / NAME
    examples = [example.question for example in read_examples(folder / "examples.csv")]
    others = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)[::EVERY]
    results = measure_additions(
        NAME,
        examples,
        description=DESCRIPTION,
        test=_test(folder / "test.csv"),
        others=others,
        taught=_teacher(settings),
        progress=True,
    )
    if args.json:
        print(json.dumps({"machine": machine(), "additions": [asdict(result) for result in results]}, indent=2))
    else:
        _show(results)
    return 0


def _teacher(settings: Settings) -> Callable[[Sequence[str]], Callable[[str], Decision]]:
    """What decides once these examples were taught; of none, as the router ships."""
    from expert_router.artifacts import load_experts
    from expert_router.evaluation.scale import RememberingEncoder
    from expert_router.live.teaching import Teacher
    from expert_router.routing.embedding import EmbeddingRouter
    from expert_router.routing.policy import Policy
    from expert_router.serving.parts import Parts
    from expert_router.training.addition import fit_addition

    parts = Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=True)
    background, encoder = Teacher(parts).background, RememberingEncoder(parts.encoder)

    def taught(examples: Sequence[str]) -> Callable[[str], Decision]:
        shared = parts.artifact.calibration
        heads = [fit_addition(NAME, examples, background, encoder, shared)] if examples else []
        router = EmbeddingRouter(encoder, parts.artifact, parts.terms, settings.router.coverage, added=heads)
        policy = Policy(router.thresholds, {})
        return lambda query: policy.decide(router.score(query))

    return taught


def _test(path: Path) -> list[LabelledQuestion]:
    from expert_router.data.labelled import LabelledQuestion
    from expert_router.training.examples import read_rows

    def question(row: dict[str, str]) -> LabelledQuestion:
        return LabelledQuestion(row["question"], frozenset(filter(None, row["experts"].split("|"))), NAME)

    return read_rows(path, "a file of questions and the experts they need", question)


def _show(results: Sequence[AdditionResult]) -> None:
    print(f"{NAME}, a new expert, taught with so many examples   {machine()}")
    print("  examples      reach it    others kept away    own test as before")
    for each in results:
        count = f"{each.examples}" if each.examples else "a description"
        print(f"  {count:<14}{each.reached.value:>7.1%}{each.kept_away.value:>18.1%}{each.unchanged.value:>21.1%}")
