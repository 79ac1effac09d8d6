"""``expert-router expert add --train``: once an expert is routed to, train an adapter for it, prove it, swap it in.

The expert answers without it meanwhile, and on without it where anything goes wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.training_run import (
    Lessons,
    about_adapter,
    add_training_arguments,
    examples_of,
    knowledge_of,
    reads,
    run_training,
    trained_adapter,
    training_as_asked,
    weights_file,
)
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Sequence

    from expert_router.catalogue import Version
    from expert_router.live.experts import Change, LiveExperts
    from expert_router.live.proposal import Proposal
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.training.examples import Example, QuestionAnswer
    from expert_router.types import Expert, Passage

FEWEST_ANSWERED = 20
VALIDATION_SHARE = 0.2
MEANT_STEPS = 60
"""Passes are repeated until there are so many: in fewer steps an adapter is hardly sure of anything."""
FEWEST_PASSES = 2
AS_CONFIGURED = {"output": None, "resume": None, "preview": False, "quantization": "none", "accelerator": "none"}
"""What ``train expert`` may be told and this command is not."""


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("add --train")
    group.add_argument(
        "--train",
        action="store_true",
        help="then train an adapter on the examples that have an answer, and a key where it reads; swapped in once it "
        f"is proven; at least {FEWEST_ANSWERED}; needs the train extra",
    )
    group.add_argument("--epochs", type=float, help="default: 1")
    group.add_argument("--learning-rate", type=float, help="default: 4e-4")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--passes", type=int, help=f"over the questions (default: as many as make {MEANT_STEPS} steps)")
    add_training_arguments(group)
    parser.set_defaults(**AS_CONFIGURED)


def require_trainable(args: Namespace, settings: Settings, proposal: Proposal) -> None:
    """Raises ``ConfigError`` that says what is missing, before anything is changed."""
    from expert_router.knowledge.corpus import read_corpus
    from expert_router.training.examples import QuestionAnswer

    base = settings.engine.base_model
    if weights_file(settings, base) is None:
        raise ConfigError(
            f"--train is for base models of models.lock, which are served in this process; {base} is none. Add the "
            "expert without it."
        )
    passages = read_corpus(args.knowledge) if args.knowledge and settings.knowledge.passages else None
    asked = {each.question: each for each in proposal.examples}
    questions = [QuestionAnswer(each.question, each.answer, tuple(each.key.split("|"))) for each in asked.values()]
    answered = _answered(questions, passages)
    if len(answered) < FEWEST_ANSWERED:
        key = ", and a key: a short fact that one of its texts holds, word for word" if passages is not None else ""
        raise ConfigError(
            f"--train needs at least {FEWEST_ANSWERED} examples to learn from, and {len(answered)} of "
            f"{len(questions)} are of use. Give a CSV with the columns question, answer and key: each row needs an "
            f"answer{key}. Nothing was changed; without --train the expert is added all the same."
        )
    training_as_asked(args, reads=passages is not None)  # last, as torch takes seconds to import


def train_added(args: Namespace, live: LiveExperts, version: Version) -> Change:
    """Train the expert that the version has added, and let a further one count in which it has its adapter.

    Raises ``ExpertRouterError`` when it cannot be trained or proven; the expert is as it was then.
    """
    from expert_router.artifacts import install_adapter, load_expert
    from expert_router.serving.embedded import prove
    from expert_router.serving.parts import Parts

    settings, name, folder = live.settings, args.name, version.added[args.name]
    parts = Parts(settings, live.experts(), version=version, progress=True)
    expert = version.experts({})[name]
    training = training_as_asked(args, reads=reads(settings, expert))
    lessons = _lessons(args, parts, expert, folder)
    run = run_training(args, settings, expert, base=settings.engine.base_model, training=training, lessons=lessons)
    assert run is not None  # this is one process, which was not asked for a preview
    base, about = about_adapter(run, settings, name)

    def install(place: Path) -> None:
        install_adapter(place, base, trained_adapter(run), about)

    with tempfile.TemporaryDirectory() as temporary:
        staged = shutil.copytree(folder, Path(temporary) / name)
        install(staged)
        asyncio.run(prove(settings, load_expert(staged / "expert.toml", staged)))
    return live.equip(name, install, trained=version)


def _lessons(args: Namespace, parts: Parts, expert: Expert, folder: Path) -> Lessons:
    from expert_router.catalogue import EXAMPLES_FILE
    from expert_router.training.examples import canary_prompts, read_questions

    passages = parts.corpora[expert.name] if reads(parts.settings, expert) else None
    training, validation = _split(_answered(read_questions(folder / EXAMPLES_FILE), passages))
    elsewhere = _elsewhere(parts.settings, expert.name)

    def examples(count: int) -> list[Example]:
        return examples_of(parts, expert, training, elsewhere, range(args.seed, args.seed + count))

    meant = max(FEWEST_PASSES, ceil(MEANT_STEPS * args.batch_size / len(examples(1))))
    return Lessons(
        examples(args.passes or meant),
        examples_of(parts, expert, validation, elsewhere, [args.seed]),
        canary_prompts(expert, validation, knowledge_of(parts, expert)),
    )


def _answered(questions: Iterable[QuestionAnswer], passages: Sequence[Passage] | None) -> list[QuestionAnswer]:
    """What can be learnt from: a question with its answer, where the expert reads also a key that a passage holds."""
    from expert_router.training.examples import passage_holds

    answered = [each for each in questions if each.answer.strip()]
    if passages is None:
        return answered
    return [each for each in answered if any(passage_holds(passage, each.keys) for passage in passages)]


def _split(questions: Sequence[QuestionAnswer]) -> tuple[list[QuestionAnswer], list[QuestionAnswer]]:
    """To train on and to validate on: by the question's own hash, so that the order of a file does not matter."""
    ordered = sorted(questions, key=lambda each: hashlib.sha256(each.question.encode()).digest())
    count = max(1, round(VALIDATION_SHARE * len(ordered)))
    return ordered[count:], ordered[:count]


def _elsewhere(settings: Settings, name: str) -> list[str]:
    """Questions for the other experts. Those for nobody may well be of the new field, so they are left out."""
    from expert_router.data.labelled import read_labelled

    path = settings.resolve(settings.paths.data) / "processed" / "routing_train.csv"
    labelled = read_labelled(path) if path.is_file() else []
    return [each.query for each in labelled if each.experts and name not in each.experts]
