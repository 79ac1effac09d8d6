"""``expert-router train abstention``: when an expert says that it does not know, calibrated as it is served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from expert_router.commands.measuring import AT_ONCE, require_packages
from expert_router.commands.train_expert import chosen
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.ports import Engine
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.training.abstention import Asked, Calibrated
    from expert_router.training.examples import QuestionAnswer
    from expert_router.types import Expert, Found

CALIBRATION = "calibration"
FALSE_REFUSALS = 0.03


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("abstention")
    group.add_argument(
        "--false-refusals",
        type=float,
        default=FALSE_REFUSALS,
        metavar="SHARE",
        help=f"of the questions that its texts answer, so many may be refused (default: {FALSE_REFUSALS})",
    )


def calibrate(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    """Ask the expert calibration questions, fit the rule and write it into the expert's manifest."""
    from expert_router.artifacts import install_abstention
    from expert_router.serving.build import build_engine
    from expert_router.serving.parts import Parts
    from expert_router.training.abstention import fit_abstention

    expert = chosen(args, experts)
    if not 0 < args.false_refusals < 1:
        raise ConfigError(f"--false-refusals takes a share between 0 and 1, not {args.false_refusals}.")
    if expert.knowledge is None or not settings.knowledge.passages:
        raise ConfigError(f"The expert {expert.name!r} reads nothing, so it cannot miss an answer in what it reads.")
    require_packages()
    parts = Parts(settings, experts, progress=True)
    engine = build_engine(parts)
    served = engine.served(expert)
    if served.adapter is None:
        raise ConfigError(f"The expert {expert.name!r} has no adapter: expert-router train expert {expert.name}")
    questions = _questions(parts, data, expert)
    asked = asyncio.run(_ask(engine, expert, questions))
    calibrated = fit_abstention(asked, served.adapter, false_refusals=args.false_refusals, seed=args.seed)
    _show(calibrated, asked)
    install_abstention(settings.resolve(settings.paths.experts) / expert.name, served.base, calibrated.rule)
    print(f"{expert.name} abstains so on {served.base} from the next start on.")
    return 0


def _questions(parts: Parts, data: Path, expert: Expert) -> Sequence[tuple[str, Sequence[Found], bool]]:
    """Each question, what is found for it, and whether that answers it.

    Those that texts answer are ``expert.unseen``, or else the calibration split's. Without written questions that
    nothing answers, the answers are taken out of what is found for the others.
    """
    from expert_router.evaluation.questions import unanswerable_questions
    from expert_router.evaluation.variants import WithoutAnswers
    from expert_router.knowledge.grounding import texts_read
    from expert_router.serving.build import build_library
    from expert_router.training.examples import holds_key, read_questions

    library = build_library(parts)
    assert library is not None  # the expert reads

    def search(question: str) -> Sequence[Found]:
        return library.look_up(expert.name, question)

    def answers(item: QuestionAnswer, found: Sequence[Found]) -> bool:
        return any(holds_key(text, item.keys) for text in texts_read(found))

    nobodys = [each.text for each in unanswerable_questions(expert, CALIBRATION)]
    if expert.unanswerable is not None and not nobodys:
        raise ConfigError(f"{expert.unanswerable} has no question of the split {CALIBRATION!r}.")
    items = read_questions(expert.unseen or data / f"{CALIBRATION}_{expert.split_name}.csv")
    asked = [(item.question, search(item.question)) for item in items]
    answered = [(text, found, True) for item, (text, found) in zip(items, asked, strict=True) if answers(item, found)]
    if nobodys:
        return answered + [(text, search(text), False) for text in nobodys]
    keys = {item.question: item.keys for item in items}
    without = replace(library, knowledge=WithoutAnswers(library.knowledge, keys))
    return answered + [(item.question, without.look_up(expert.name, item.question), False) for item in items]


async def _ask(engine: Engine, expert: Expert, questions: Sequence[tuple[str, Sequence[Found], bool]]) -> list[Asked]:
    from tqdm.asyncio import tqdm

    from expert_router.serving.abstention import doubt_of, first_token, match_of, refuses
    from expert_router.serving.prompts import expert_messages
    from expert_router.training.abstention import Asked
    from expert_router.types import Message

    room = asyncio.Semaphore(AT_ONCE)

    async def ask(question: str, found: Sequence[Found], answerable: bool) -> Asked | None:
        messages = expert_messages(expert, [Message("user", question)], found=found)
        async with room:
            first = await first_token(engine, expert, messages)
        doubt = doubt_of(first) if found else None
        return None if doubt is None else Asked(doubt, match_of(found), answerable, refuses(first))

    try:
        await engine.warm_up(expert)
        asked = await tqdm.gather(*(ask(*each) for each in questions), desc="ask", unit="question", disable=None)
    finally:
        await engine.close()
    if not any(asked):
        raise ConfigError(
            f"The engine {engine.name!r} does not tell how sure {expert.name!r} is, or it neither answers nor refuses "
            "as an expert that was trained here does."
        )
    return [each for each in asked if each is not None]


def _show(calibrated: Calibrated, asked: Sequence[Asked]) -> None:
    known = sum(each.answerable for each in asked)
    rule, itself = calibrated.by_rule, calibrated.by_itself
    by_doubt, by_match, by_rule = calibrated.auroc
    print(f"Asked {known} questions that the texts answer and {len(asked) - known} that they do not.")
    print(f"Refused by itself:   {itself.answerable:.0%} of the former, {itself.unanswerable:.0%} of the latter.")
    print(f"Refused by the rule: {rule.answerable:.0%} and {rule.unanswerable:.0%} (cross-validated).")
    print(f"AUROC of its own doubt {by_doubt:.3f}, of retrieval's match {by_match:.3f}, of the rule {by_rule:.3f}.")
    weighed = [name for name, weight in (("doubt", calibrated.rule.doubt), ("match", calibrated.rule.match)) if weight]
    print(f"The rule weighs {' and '.join(weighed)}.")
