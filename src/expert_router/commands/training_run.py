"""One training run of an expert, whoever asks for it: ``train expert``, or ``expert add --train``."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import RUNS
from expert_router.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from argparse import Namespace, _ArgumentGroup
    from collections.abc import Iterable, Sequence

    from expert_router.ports import Knowledge
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.training.examples import Example, QuestionAnswer
    from expert_router.training.expert import ExpertTraining
    from expert_router.types import Expert

GGUF_ENDING = ".gguf"
WHOLE_QUOTES = 0.15
"""Measured in docs/log.md; an answer that is not quoted has to be learnt whole."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a run learns from and is measured on, and the prompts of which one will prove that its adapter is loaded."""

    examples: Sequence[Example]
    validation: Sequence[Example]
    canaries: Sequence[str]


def add_training_arguments(group: _ArgumentGroup) -> None:
    """What ``training_as_asked`` reads, but for the learning rate, epochs and seed."""
    group.add_argument("--rank", type=int, default=6, help="of the LoRA matrices (default: 6)")
    group.add_argument("--batch-size", type=int, default=16)
    group.add_argument("--micro-batch-size", type=int, default=4, help="what fits into memory at once")
    group.add_argument("--max-tokens", type=int, default=1536, help="of one example, prompt and answer together")
    group.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps, for a trial")
    group.add_argument(
        "--whole-answers",
        type=float,
        metavar="SHARE",
        help="of examples whose answer counts whole; of the rest only how it begins "
        f"(default: {WHOLE_QUOTES} of an expert that reads, else 1)",
    )


def run_training(
    args: Namespace, settings: Settings, expert: Expert, *, base: str, training: ExpertTraining, lessons: Lessons
) -> Path | None:
    """Train into a folder of its own, and say how it went; ``None`` after a preview, or where another process speaks.

    Raises ``TrainingError``.
    """
    from expert_router.training.card import write_card
    from expert_router.training.expert import build_trainer, preview, train_expert

    examples, validation = lessons.examples, lessons.validation
    folder, leads = _folder(args, settings, expert.name, Path(base).name)
    model = load_base_model(args, settings, base)
    if leads:
        print(f"{len(examples)} examples, {sum(e.answerable for e in examples)} of them answerable.")
    if args.preview:
        print(preview(build_trainer(model, examples, validation, training, folder), model.tokenizer))
        return None
    trained = train_expert(
        model, examples, validation, training, folder, canaries=lessons.canaries, resume=args.resume is not None
    )
    if not leads:
        return None
    about = {
        "expert": expert.name,
        "base": base,
        "examples": len(examples),
        "data_sha256": hashlib.sha256(repr((examples, validation)).encode()).hexdigest(),
        "quantization": args.quantization,
        "accelerator": args.accelerator,
        "training": asdict(training),
    }
    report = write_card(folder, trained, about)
    print(f"Validation loss {report['base_loss']:.3f} without the adapter, {report['loss']:.3f} with it.")
    print(f"Saved in {folder}.")
    return folder


def trained_adapter(run: Path) -> Path:
    return run / "adapter"


def about_adapter(run: Path, settings: Settings, expert: str) -> tuple[str, dict[str, Any]]:
    """The base that a finished run was on, and what is kept with its adapter.

    Raises ``ConfigError`` when it is no finished run, or another expert's, or nothing could prove its adapter.
    """
    from expert_router.training.card import REPORT_FILE
    from expert_router.weights import load_lock

    try:
        report: dict[str, Any] = json.loads((run / REPORT_FILE).read_text("utf-8"))
        base, of, canary = report["base"], report["expert"], report["canary"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{run} is not the folder of a finished run: {error!r}") from error
    if canary is None:
        raise ConfigError(
            f"The adapter of {run} is sure of no answer that its base would not give as well, so nothing could prove "
            "that it is loaded: train for longer, or with a higher --learning-rate."
        )
    if of != expert:
        raise ConfigError(f"{run} trained {of!r}, not {expert!r}.")
    lock = load_lock(settings.resolve(settings.paths.models_lock))
    return base, {
        "base": base,
        "base_sha256": lock[base].files[0].sha256 if base in lock else None,
        "canary": canary,
        "report": {key: value for key, value in report.items() if key not in {"losses", "validation", "canary"}},
    }


def _folder(args: Namespace, settings: Settings, expert: str, base: str) -> tuple[Path, bool]:
    """The run's folder, and whether this process speaks for all: ``accelerate launch`` starts one for each GPU."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    leads: bool = PartialState().is_main_process
    if args.resume:
        return args.resume, leads
    made = [str(new_run_folder(args.output or settings.home / RUNS, expert, base)) if leads else ""]
    return Path(broadcast_object_list(made)[0]), leads


def new_run_folder(place: Path, expert: str, base: str) -> Path:
    """A folder that does not exist yet: no run is written over."""
    folder = place / f"{expert}-{base.removesuffix(GGUF_ENDING)}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise TrainingError(f"The run's folder {folder} cannot be made: {error}") from error
    return folder


def examples_of(
    parts: Parts, expert: Expert, questions: Sequence[QuestionAnswer], elsewhere: Sequence[str], seeds: Iterable[int]
) -> list[Example]:
    """``build_examples`` with what the expert reads when it serves, once for each seed."""
    from expert_router.training.examples import build_examples

    passages, knowledge = parts.settings.knowledge.passages, knowledge_of(parts, expert)
    return [
        example
        for seed in seeds
        for example in build_examples(expert, questions, elsewhere, knowledge, passages=passages, seed=seed)
    ]


def knowledge_of(parts: Parts, expert: Expert) -> Knowledge | None:
    return parts.knowledge if reads(parts.settings, expert) else None


def reads(settings: Settings, expert: Expert) -> bool:
    return expert.knowledge is not None and settings.knowledge.passages > 0


def training_as_asked(args: Namespace, *, reads: bool) -> ExpertTraining:
    """Raises ``ConfigError`` that says which packages are missing."""
    try:
        from expert_router.training.expert import ExpertTraining
    except ImportError as error:
        raise ConfigError(
            f"Training an expert needs more packages ({error}): pip install 'expert-router[train]'"
        ) from error
    whole_answers = WHOLE_QUOTES if reads and args.whole_answers is None else args.whole_answers
    given = {"learning_rate": args.learning_rate, "epochs": args.epochs, "whole_answers": whole_answers}
    return ExpertTraining(
        rank=args.rank,
        **{name: value for name, value in given.items() if value is not None},
        batch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        max_tokens=args.max_tokens,
        max_steps=args.max_steps,
        seed=args.seed,
    )


def weights_file(settings: Settings, name: str) -> str | None:
    """The file that models.lock has under this name, if it has one."""
    from expert_router.weights import load_lock

    locked = load_lock(settings.resolve(settings.paths.models_lock)).get(name)
    return locked.files[0].name if locked else None


def load_base_model(args: Namespace, settings: Settings, name: str) -> Any:
    from expert_router.serving.parts import fetch_model
    from expert_router.training.base import load_base

    options = {
        "quantization": args.quantization, "accelerator": args.accelerator, "max_tokens": args.max_tokens
    }  # fmt: skip
    if weights_file(settings, name):
        _, files = fetch_model(settings, name, progress=True)
        return load_base(next(iter(files.values())), **options)
    return load_base(name, token=settings.hf_token, **options)
