"""``expert-router optimize``: what variants of the experts' models cost and know; prune a base; install a variant."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands import optimize_prune
from expert_router.commands.measuring import (
    AT_ONCE,
    PREPARED,
    about_run,
    chosen_names,
    new_folder,
    require_packages,
)
from expert_router.errors import ConfigError, NotReadyError, WeightsError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Mapping, Sequence

    from expert_router.evaluation.answers import Scored
    from expert_router.evaluation.optimization import MeasuredVariant, OptimizedExpert
    from expert_router.evaluation.questions import Question
    from expert_router.ports import Router
    from expert_router.serving.deployment import Library
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.types import Expert, ModelVariant

HELP = "measure smaller and faster variants of the experts' models, and install one"
SPEED_QUESTIONS = 12
EXIT_REFUSED = 1
ENGINE = "openvino"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=("measure", "prune"),
        default="measure",
        help="measure: ask every variant the test questions (default); prune: make a base of fewer layers to train on",
    )
    group = parser.add_argument_group("measure")
    group.add_argument("--experts", metavar="NAMES", help="joined by commas (default: all)")
    group.add_argument("--variants", metavar="NAMES", help="joined by commas, besides q8_0 (default: all there are)")
    group.add_argument("--limit", type=int, metavar="N", help="ask N questions of each expert, for a quick look")
    group.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: runs/optimize-<time>)")
    group.add_argument("--prefer", choices=("speed", "size"), default="speed", help="what is recommended")
    group.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="POINTS",
        help="of key-fact accuracy that may be lost (default: 2)",
    )
    group.add_argument(
        "--install", metavar="VARIANT", help="serve the experts as this variant, unless it loses too much"
    )
    group.add_argument("--run", type=Path, metavar="DIR", help="install by what was measured there; nothing is asked")
    optimize_prune.add_arguments(parser)


def main(args: Namespace) -> int:
    from expert_router.artifacts import load_experts
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    experts = load_experts(settings.resolve(settings.paths.experts), settings.home)
    if args.what == "prune":
        return optimize_prune.prune(args, settings, experts)
    if not 0 <= args.tolerance <= 100:  # noqa: PLR2004 - points
        raise ConfigError(f"--tolerance takes points from 0 to 100, not {args.tolerance:g}.")
    chosen = [experts[name] for name in chosen_names(args.experts, list(experts), "--experts") or list(experts)]
    if args.run is None:
        results = _measure(args, settings, experts, chosen)
    elif args.install is None:
        raise ConfigError("--run goes with --install VARIANT.")
    else:
        results = _read(args.run, chosen)
    return _install(args, settings, chosen, results) if args.install else 0


# Measuring


def _measure(
    args: Namespace, settings: Settings, experts: Mapping[str, Expert], chosen: Sequence[Expert]
) -> list[OptimizedExpert]:
    from tqdm import tqdm

    from expert_router.serving.build import build_library, build_router
    from expert_router.serving.parts import Parts

    if settings.engine.name != ENGINE:
        raise ConfigError(f"optimize measures the {ENGINE} engine; these settings have {settings.engine.name}.")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit takes a number from 1 on, not {args.limit}.")
    plan = {expert.name: _plan(args, settings, expert) for expert in chosen}
    require_packages()
    questions = {expert.name: _questions(args, settings, expert) for expert in chosen}
    folder = new_folder(args.output, settings, "optimize")
    parts = Parts(settings, experts, progress=True)
    router, library = build_router(parts), build_library(parts)
    # A variant that is refused is not asked: the bar ends early then.
    total = sum((len(questions[name]) + _speed_count(questions[name])) * len(plan[name]) for name in plan)
    with tqdm(total=total, desc="ask", unit="answer", disable=None) as bar:
        bench = _Bench(parts, router, library, bar.update)
        results = [_measure_expert(bench, expert, plan[expert.name], questions[expert.name]) for expert in chosen]
    router.close()
    _report(args, folder, _about(args, settings, questions), results)
    return results


def _plan(args: Namespace, settings: Settings, expert: Expert) -> dict[str, ModelVariant]:
    """The variants of an expert to measure, the reference first."""
    from expert_router.evaluation.optimization import REFERENCE, variants_of
    from expert_router.weights import load_lock

    base = expert.base_model or settings.engine.base_model
    if base not in expert.adapters:
        raise ConfigError(
            f"The expert {expert.name!r} has no adapter for {base}: expert-router train expert {expert.name}. "
            "Or name others with --experts."
        )
    lock = load_lock(settings.resolve(settings.paths.models_lock))
    pruned = {name: model.pruned.base.name for name, model in lock.items() if model.pruned is not None}
    there = variants_of(base, expert.adapters, pruned)
    wanted = chosen_names(args.variants, list(there), "--variants") or list(there)
    return {name: variant for name, variant in there.items() if name in {REFERENCE, *wanted}}


def _questions(args: Namespace, settings: Settings, expert: Expert) -> list[Question]:
    from expert_router.evaluation.questions import prepared_questions, sample

    prepared = settings.resolve(settings.paths.data) / "processed"
    questions = [question for question in prepared_questions(expert, prepared) if question.keys]
    if not questions:
        raise ConfigError(f"The test questions of {expert.name!r} have no keys, which tell right from wrong.")
    return sample(questions, args.limit, lambda question: question.text, lambda question: question.expert)


def _speed_count(questions: Sequence[Question]) -> int:
    return min(SPEED_QUESTIONS, len(questions))


@dataclass(frozen=True)
class _Bench:
    """What all variants share: everything but the engine. ``done`` is called after each answer."""

    parts: Parts
    router: Router
    library: Library | None
    done: Callable[[], object]


def _measure_expert(
    bench: _Bench, expert: Expert, plan: Mapping[str, ModelVariant], questions: Sequence[Question]
) -> OptimizedExpert:
    from expert_router.evaluation.optimization import REFERENCE, MeasuredVariant, OptimizedExpert, key_facts, speed_of

    base = plan[REFERENCE].base
    measured: dict[str, MeasuredVariant] = {}
    refused: dict[str, str] = {}
    reference: list[Scored] | None = None
    for name, variant in plan.items():
        served = replace(expert, serve_as={base: variant})
        try:
            found = asyncio.run(_measure_variant(bench, served, base, questions))
        except (NotReadyError, WeightsError) as error:
            if name == REFERENCE:
                raise
            refused[name] = error.message
            continue
        accuracy, difference = key_facts(found.answers, reference)
        adapter, size = expert.adapters[variant.base].sha256, found.size_bytes
        speed = speed_of(found.timed)
        measured[name] = MeasuredVariant(variant, adapter, size, found.load_s, speed, accuracy, difference)
        reference = reference or found.answers
    return OptimizedExpert(expert.name, base, measured, refused)


@dataclass(frozen=True)
class _Found:
    """``timed`` are answers to one client, ``answers`` those to all questions."""

    size_bytes: int
    load_s: float
    timed: list[Scored]
    answers: list[Scored]


async def _measure_variant(bench: _Bench, expert: Expert, base: str, questions: Sequence[Question]) -> _Found:
    """``expert`` is served as the variant. Raises ``NotReadyError`` or ``WeightsError`` when it cannot be."""
    from expert_router.evaluation.answers import Asking, ask_all
    from expert_router.evaluation.metrics import TextMetrics
    from expert_router.evaluation.variants import Variants
    from expert_router.serving.build import assemble, build_engine, max_running
    from expert_router.serving.embedded import prepare_base_model
    from expert_router.serving.parts import Parts
    from expert_router.types import ChatRequest, GenerationParams, Message

    parts = bench.parts
    settings, experts = parts.settings, {**parts.experts, expert.name: expert}
    prepared = prepare_base_model(settings, *expert.embedded_on(base), progress=True)
    engine = build_engine(Parts(settings, experts, progress=True))
    dispatcher = assemble(parts, bench.router, engine, library=bench.library, experts=experts)
    params = GenerationParams(settings.serving.max_tokens, temperature=0.0)
    at_once = min(AT_ONCE, max_running(settings))
    asking = Asking(Variants(dispatcher, {}, {}), TextMetrics(None), params, at_once, bench.done)
    try:
        started = time.perf_counter()
        await engine.warm_up(expert)
        load_s = time.perf_counter() - started
        # Not timed: it is the first to read the instructions, which stay in the cache.
        await dispatcher.ask(ChatRequest((Message("user", expert.title),), expert.name, params))
        few = questions[: _speed_count(questions)]
        timed = await ask_all(replace(asking, at_once=1), dispatcher, expert.name, few)
        answers = await ask_all(asking, dispatcher, expert.name, questions)
    finally:
        await engine.close()
    return _Found(prepared.size_bytes, load_s, timed, answers)


def _report(args: Namespace, folder: Path, about: dict[str, str], results: list[OptimizedExpert]) -> None:
    from expert_router.evaluation.optimization import Optimization, optimization_as_markdown, write_optimization
    from expert_router.evaluation.pictures import draw_optimization

    optimization = Optimization(about, results, args.tolerance / 100, args.prefer)
    pictures = draw_optimization(folder, results)
    write_optimization(folder, optimization, pictures)
    print(optimization_as_markdown(optimization, {}))
    print(f"Saved in {folder}: report.md, report.json, {', '.join(pictures)}.", file=sys.stderr)


def _about(args: Namespace, settings: Settings, questions: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    return about_run(
        questions.values(),
        data=PREPARED,
        limit=args.limit,
        settings=f"profile {settings.profile}, up to {settings.knowledge.passages} passages, at most "
        f"{settings.serving.max_tokens} tokens",
        load=f"; {AT_ONCE} questions at once for what they know",
    )


# Installing


def _read(run: Path, chosen: Sequence[Expert]) -> list[OptimizedExpert]:
    from expert_router.evaluation.optimization import read_optimization

    found = {result.expert: result for result in read_optimization(run)}
    if missing := [expert.name for expert in chosen if expert.name not in found]:
        raise ConfigError(
            f"{run} has not measured {', '.join(missing)}: name those it has with --experts {','.join(found)}."
        )
    return [found[expert.name] for expert in chosen]


def _install(args: Namespace, settings: Settings, chosen: Sequence[Expert], results: Sequence[OptimizedExpert]) -> int:
    """Nothing is installed when one of the chosen experts may not have it."""
    from expert_router.artifacts import install_variant

    tolerance = args.tolerance / 100
    problems = [
        _problem(expert, result, args.install, tolerance) for expert, result in zip(chosen, results, strict=True)
    ]
    if refused := [problem for problem in problems if problem]:
        print(f"Nothing was installed. {' '.join(refused)}", file=sys.stderr)
        return EXIT_REFUSED
    for result in results:
        folder = settings.resolve(settings.paths.experts) / result.expert
        install_variant(folder, result.base, result.variants[args.install].model)
        print(f"Where {result.base} is configured, {result.expert} is served as {args.install} from the next start on.")
    return 0


def _problem(expert: Expert, result: OptimizedExpert, variant: str, tolerance: float) -> str | None:
    from expert_router.evaluation.optimization import why_not

    problem = why_not(result, variant, tolerance)
    if problem is not None:
        return problem
    measured = result.variants[variant]
    there = expert.adapters.get(measured.model.base)
    if there is None or there.sha256 != measured.adapter:
        return (
            f"{variant} of {expert.name} was measured with the adapter {measured.adapter[:12]}, which is not the one "
            "that the expert has now: measure again."
        )
    return None
