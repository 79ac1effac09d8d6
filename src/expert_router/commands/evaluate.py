"""``expert-router evaluate``: router, answers and both together, measured; report in Markdown, JSON and pictures."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands import evaluate_replay
from expert_router.commands.measuring import (
    AT_ONCE,
    PREPARED,
    TEST_SPLIT,
    about_run,
    chosen_names,
    new_folder,
    require_packages,
)
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.answers import AskedExpert
    from expert_router.evaluation.questions import Question
    from expert_router.evaluation.report import Evaluation, Perplexity
    from expert_router.evaluation.routing import RoutingReport
    from expert_router.evaluation.variants import Variants
    from expert_router.ports import TextEncoder
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.types import Expert

HELP = "measure the router, the experts' answers and both together, against the base model; or a router on the log"
EXIT_GATE = 1


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "replay"),
        default="all",
        help="all (default): router, answers and both together; replay: a router on the questions of a decision log",
    )
    parser.add_argument("--experts", metavar="NAMES", help="joined by commas (default: all)")
    parser.add_argument(
        "--variants",
        default="",
        metavar="NAMES",
        help="of base, base+knowledge, adapter, adapter+knowledge, joined by commas (default: all that exist)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="ask N questions of each expert, the same every time (default: all)"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        metavar="FILE.jsonl",
        help="public questions instead of the test split: lines with question, aliases and answer_type, where long is "
        "compared but not right or wrong, and with expert, unless --experts names one",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: runs/evaluation-<time>)")
    parser.add_argument("--gate", action="store_true", help="exit with status 1 when an expert does not beat the base")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of Markdown")
    evaluate_replay.add_arguments(parser)


def main(args: Namespace) -> int:
    from expert_router.artifacts import load_experts
    from expert_router.serving.parts import Parts
    from expert_router.settings import load_settings

    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit takes a number from 1 on, not {args.limit}.")
    settings = load_settings(args.config)
    if args.what == "replay":
        return evaluate_replay.replay_log(args, settings)
    parts = Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=True)
    names = chosen_names(args.experts, list(parts.experts), "--experts") or list(parts.experts)
    require_packages()
    chosen = [parts.experts[name] for name in names]
    questions = _questions(args, settings, chosen)
    unanswerable = {} if args.data else _unanswerable(args, chosen)
    labelled = _labelled(args, settings, questions)
    folder = new_folder(args.output, settings, "evaluation")
    evaluation, asked = _evaluate(args, parts, questions, unanswerable, labelled)
    return _report(args, folder, evaluation, asked)


def _report(args: Namespace, folder: Path, evaluation: Evaluation, asked: Sequence[AskedExpert]) -> int:
    from expert_router.evaluation.pictures import draw_pictures
    from expert_router.evaluation.report import as_markdown, as_object, write_answers, write_report

    pictures = draw_pictures(folder, evaluation)
    write_report(folder, evaluation, pictures)
    write_answers(folder, asked)
    print(json.dumps(as_object(evaluation), indent=2) if args.json else as_markdown(evaluation, {}))
    print(f"Saved in {folder}: report.md, report.json, answers.jsonl, {', '.join(pictures)}.", file=sys.stderr)
    failed = [f"{result.expert} ({result.data})" for result, gate in evaluation.gates if not gate.passed]
    if args.gate and failed:
        print(f"The base is not beaten, as far as so many questions can tell, by: {', '.join(failed)}", file=sys.stderr)
        return EXIT_GATE
    return 0


def _evaluate(
    args: Namespace,
    parts: Parts,
    questions: Mapping[tuple[str, str], Sequence[Question]],
    unanswerable: Mapping[str, Sequence[Question]],
    labelled: Sequence[LabelledQuestion],
) -> tuple[Evaluation, list[AskedExpert]]:
    from expert_router.evaluation.answers import summarise
    from expert_router.evaluation.questions import keys_by_question
    from expert_router.evaluation.report import Evaluation
    from expert_router.evaluation.router_quality import router_quality
    from expert_router.evaluation.variants import build_variants
    from expert_router.serving.build import build_engine, build_library, build_router

    keys = keys_by_question(question for group in questions.values() for question in group)
    variants = build_variants(parts, build_router(parts), build_engine(parts), build_library(parts), keys)
    with asyncio.Runner() as runner:
        try:
            plan, notes = _plan(args, variants, [expert for expert, _ in questions])
            router = _measure_router(runner, variants, labelled)
            encoder, note = _similarity_encoder(parts)
            asks = [(name, group, plan[name], unanswerable.get(name, ())) for (name, _), group in questions.items()]
            asked = runner.run(_ask(parts.settings, variants, asks, encoder))
        finally:
            runner.run(variants.configured.close())
    quality = router_quality(labelled, router.decisions)
    perplexity = {name: _perplexity(parts.experts[name], variants) for name in plan}
    results = [summarise(each) for each in asked]
    about = _about(args, parts.settings, questions)
    return Evaluation(about, [*notes, *note], router, quality, results, perplexity), asked


def _plan(args: Namespace, variants: Variants, experts: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Which variants to ask of each expert, and what is left out, in words."""
    from expert_router.evaluation.variants import ADAPTER, BASE, INSTRUCTIONS, VARIANTS

    wanted = chosen_names(args.variants, [*VARIANTS, INSTRUCTIONS], "--variants") or [*VARIANTS, INSTRUCTIONS]
    plan, notes = {}, []
    for expert in dict.fromkeys(experts):
        there = variants.of(expert)
        plan[expert] = [name for name in there if name in wanted]
        missing = [name for name in wanted if name not in there and name != INSTRUCTIONS]
        why = "no adapter" if any(ADAPTER in name for name in missing) else ""
        if not variants.withheld or variants.configured.experts[expert].knowledge is None:
            why = " and ".join(filter(None, (why, "nothing to read")))
        if missing:
            notes.append(f"{expert} has {why}: left out: {', '.join(missing)}.")
        if not plan[expert]:
            raise ConfigError(f"The expert {expert!r} has none of these variants; it has: {', '.join(there)}.")
        if args.gate and not {BASE, there[-1]} <= set(plan[expert]):
            raise ConfigError(f"--gate compares {there[-1]} of {expert!r} with the base: name both in --variants.")
    return plan, notes


def _measure_router(runner: asyncio.Runner, variants: Variants, labelled: Sequence[LabelledQuestion]) -> RoutingReport:
    from expert_router.evaluation.routing import evaluate_routing

    deployed = variants.configured.deployed
    return evaluate_routing(labelled, lambda query: runner.run(deployed.decide(query)), deployed.router.name)


async def _ask(
    settings: Settings,
    variants: Variants,
    asks: Sequence[tuple[str, Sequence[Question], Sequence[str], Sequence[Question]]],
    encoder: TextEncoder | None,
) -> list[AskedExpert]:
    """``asks``: expert, questions of one set of data, variants, and questions that no text answers."""
    from tqdm import tqdm

    from expert_router.evaluation.answers import Asking, ask_expert, passes
    from expert_router.evaluation.metrics import TextMetrics
    from expert_router.serving.build import max_running
    from expert_router.types import GenerationParams

    total = sum(passes(variants, names, group, nobodys) for _, group, names, nobodys in asks)
    params = GenerationParams(settings.serving.max_tokens, temperature=0.0)
    with tqdm(total=total, desc="ask", unit="answer", disable=None) as bar:
        at_once = min(AT_ONCE, max_running(settings))
        asking = Asking(variants, TextMetrics(encoder), params, at_once, bar.update)
        return [await ask_expert(asking, expert, group, names, nobodys) for expert, group, names, nobodys in asks]


def _similarity_encoder(parts: Parts) -> tuple[TextEncoder | None, list[str]]:
    """The encoder as it was published: fine-tuned for routing, it finds all answers of a field alike.

    Settings that start without it, like the echo profile's, are measured without it.
    """
    from expert_router.commands.weights import needed_models
    from expert_router.serving.parts import Parts

    settings = parts.settings
    if settings.router.encoder not in needed_models(settings):
        return None, ["Embedding similarity: not measured, as these settings have no sentence encoder."]
    published = settings.router.model_copy(update={"tuned_encoder": None})
    return Parts(settings.model_copy(update={"router": published}), parts.experts, progress=True).encoder, []


def _perplexity(expert: Expert, variants: Variants) -> Perplexity | None:
    """From the report card of the adapter that serves; ``None`` without one."""
    from expert_router.artifacts import read_artifact
    from expert_router.evaluation.report import Perplexity

    served = variants.configured.engine.served(expert)
    if served.adapter is None:
        return None
    adapter = next(each for each in expert.adapters.values() if each.sha256 == served.adapter)
    report: dict[str, Any] = read_artifact(adapter.path).get("report", {})
    if "perplexity" not in report:
        return None
    return Perplexity(served.base, report.get("base_perplexity"), report["perplexity"])


def _questions(
    args: Namespace, settings: Settings, experts: Sequence[Expert]
) -> dict[tuple[str, str], Sequence[Question]]:
    """By expert and set of data."""
    from expert_router.evaluation.questions import prepared_questions, public_questions, sample

    names = [expert.name for expert in experts]
    if args.data:
        every = [question for path in args.data for question in public_questions(path, names)]
    else:
        prepared = settings.resolve(settings.paths.data) / "processed"
        every = [question for expert in experts for question in prepared_questions(expert, prepared)]
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in every:
        groups.setdefault((question.expert, question.data), []).append(question)
    return {key: sample(group, args.limit, lambda q: q.text, lambda q: q.expert) for key, group in groups.items()}


def _unanswerable(args: Namespace, experts: Sequence[Expert]) -> dict[str, Sequence[Question]]:
    from expert_router.evaluation.questions import sample, unanswerable_questions

    return {
        expert.name: sample(unanswerable_questions(expert), args.limit, lambda q: q.text, lambda q: q.expert)
        for expert in experts
    }


def _labelled(
    args: Namespace, settings: Settings, questions: Mapping[tuple[str, str], Sequence[Question]]
) -> list[LabelledQuestion]:
    """The router's questions: its test split, or the public ones with their experts."""
    from expert_router.data.labelled import LabelledQuestion, read_labelled
    from expert_router.evaluation.questions import sample

    if args.data:
        return [
            LabelledQuestion(question.text, frozenset({expert}), f"{expert}, {data}")
            for (expert, data), group in questions.items()
            for question in group
        ]
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    return sample(examples, args.limit, lambda example: example.query, lambda example: example.kind)


def _about(
    args: Namespace, settings: Settings, questions: Mapping[tuple[str, str], Sequence[Question]]
) -> dict[str, str]:
    return about_run(
        questions.values(),
        data=", ".join(map(str, args.data)) if args.data else PREPARED,
        limit=args.limit,
        settings=f"profile {settings.profile}, engine {settings.engine.name}, {settings.engine.base_model}, router "
        f"{settings.router.name}, up to {settings.knowledge.passages} passages, at most {settings.serving.max_tokens} "
        "tokens",
        load=f", {AT_ONCE} questions at once",
    )
