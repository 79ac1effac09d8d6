"""``expert-router train expert``, ``install`` and ``verify``: the parts of ``train`` that make experts."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import RUNS
from expert_router.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Mapping

    from expert_router.ports import Knowledge
    from expert_router.serving.build import Parts
    from expert_router.settings import Settings
    from expert_router.training.examples import Example
    from expert_router.types import Expert

GGUF_ENDING = ".gguf"
WHOLE_QUOTES = 0.15
"""Measured in docs/log.md; an answer that is not quoted has to be learnt whole."""


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("expert")
    group.add_argument("--base", metavar="NAME", help="models.lock entry, folder or hub name (default: the configured)")
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
    group.add_argument("--passes", type=int, default=2, help="over the questions, with other distractors each time")
    group.add_argument("--quantization", choices=("none", "nf4"), default="none", help="nf4: QLoRA, needs a GPU")
    group.add_argument("--accelerator", choices=("none", "unsloth"), default="none", help="unsloth: needs a GPU")
    group.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was killed")
    group.add_argument("--preview", action="store_true", help="show what the loss counts, and stop")
    group.add_argument("--install", action="store_true", help="put the adapter in place when the run is finished")
    group.add_argument("--run", type=Path, metavar="RUN", help="install: the folder of a finished run")
    group.add_argument("--conversations", type=int, default=50, help="verify: how many are compared")


def train(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    from expert_router.serving.build import Parts

    expert = chosen(args, experts)
    base_name = _base_name(args, settings, expert)
    if args.resume and _is_finished(args.resume):
        print(f"{args.resume} is finished; nothing was trained.")
        return _then(args, settings, expert, args.resume)
    if args.accelerator == "unsloth":
        from expert_router.training.unsloth import import_unsloth

        import_unsloth(_weights_file(settings, base_name) or base_name)
    training = _training(args, reads=_reads(settings, expert))
    parts = Parts(settings, experts, progress=True)
    examples = read_examples(parts, data, expert, "train", range(args.seed, args.seed + args.passes))
    validation = read_examples(parts, data, expert, "calibration", [args.seed])
    folder, leads = _folder(args, settings, expert.name, Path(base_name).name)
    base = _load_base(args, settings, base_name)
    from expert_router.training.card import write_card
    from expert_router.training.expert import build_trainer, preview, train_expert

    if leads:
        print(f"{len(examples)} examples, {sum(e.answerable for e in examples)} of them answerable.")
    if args.preview:
        print(preview(build_trainer(base, examples, validation, training, folder), base.tokenizer))
        return 0
    canaries = read_canaries(parts, data, expert)
    trained = train_expert(
        base, examples, validation, training, folder, canaries=canaries, resume=args.resume is not None
    )
    if not leads:
        return 0
    about = {
        "expert": expert.name,
        "base": base_name,
        "examples": len(examples),
        "data_sha256": hashlib.sha256(repr((examples, validation)).encode()).hexdigest(),
        "quantization": args.quantization,
        "accelerator": args.accelerator,
        "training": asdict(training),
    }
    report = write_card(folder, trained, about)
    print(f"Validation loss {report['base_loss']:.3f} without the adapter, {report['loss']:.3f} with it.")
    print(f"Saved in {folder}.")
    return _then(args, settings, expert, folder)


def _then(args: Namespace, settings: Settings, expert: Expert, run: Path) -> int:
    """Install the finished run, or say how."""
    if args.install:
        return _install(run, settings, expert)
    print(f"Next: expert-router train install {expert.name} --run {run}")
    return 0


def install(args: Namespace, settings: Settings, experts: Mapping[str, Expert]) -> int:
    """Put a finished run's adapter beside its expert; the next start merges it and asks for its canary."""
    expert = chosen(args, experts)
    if args.run is None:
        raise ConfigError("Which run? Say --run FOLDER, as expert-router train expert printed it.")
    return _install(args.run, settings, expert)


def verify(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    """Compare what is served with what was trained, over the answers of validation examples. 1 when they differ."""
    from expert_router.serving.build import Parts, prepare_base_model

    expert = chosen(args, experts)
    base_name = _base_name(args, settings, expert)
    adapter = expert.adapter_for(base_name)
    if adapter is None:
        raise ConfigError(f"The expert {expert.name!r} has no adapter: expert-router train expert {expert.name}")
    _training(args, reads=True)  # says which packages are missing
    from expert_router.training.parity import LEAST_SAME_TOP, check_parity

    served = prepare_base_model(settings, base_name, adapter, progress=True)
    validation = read_examples(Parts(settings, experts, progress=True), data, expert, "calibration", [args.seed])
    base = _load_base(args, settings, base_name)
    parity = check_parity(base, adapter.path, served.folder, validation[: args.conversations])
    print(f"{served.modules} modules merged; {parity.tokens} answer tokens of {parity.conversations} conversations.")
    print(f"The same likeliest token: {parity.same_top:.1%} (at least {LEAST_SAME_TOP:.0%} are expected).")
    print(f"Largest difference of a logit {parity.largest_difference:.2f}, mean {parity.mean_difference:.3f}.")
    return int(parity.same_top < LEAST_SAME_TOP)


def _install(run: Path, settings: Settings, expert: Expert) -> int:
    from expert_router.artifacts import install_adapter
    from expert_router.training.card import REPORT_FILE
    from expert_router.weights import load_lock

    try:
        report: dict[str, Any] = json.loads((run / REPORT_FILE).read_text("utf-8"))
        base, of, canary = report["base"], report["expert"], report["canary"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{run} is not the folder of a finished run: {error!r}") from error
    if canary is None:
        raise ConfigError(
            f"The adapter of {run} is sure of no answer that its base would not give as well, so nothing could prove "
            "that it is loaded: train for longer, or with a higher --learning-rate."
        )
    if of != expert.name:
        raise ConfigError(f"{run} trained {of!r}, not {expert.name!r}.")
    lock = load_lock(settings.resolve(settings.paths.models_lock))
    about = {
        "base": base,
        "base_sha256": lock[base].files[0].sha256 if base in lock else None,
        "canary": canary,
        "report": {key: value for key, value in report.items() if key not in {"losses", "validation", "canary"}},
    }
    folder = settings.resolve(settings.paths.experts) / expert.name
    adapter = install_adapter(folder, base, run / "adapter", about)
    print(f"{expert.name} answers on {base} with the adapter {adapter.sha256[:12]} from the next start on.")
    if expert.knowledge is not None:
        print(f"Next: expert-router train abstention {expert.name}, which finds when it should refuse.")
    return 0


def chosen(args: Namespace, experts: Mapping[str, Expert]) -> Expert:
    if args.name not in experts:
        raise ConfigError(f"Which expert? Known: {', '.join(experts)}.")
    return experts[args.name]


def _base_name(args: Namespace, settings: Settings, expert: Expert) -> str:
    name: str = args.base or expert.base_model or settings.engine.base_model
    return name


def _is_finished(run: Path) -> bool:
    """A run writes its report last. Raises ``TrainingError`` when there is no such run."""
    from expert_router.training.card import REPORT_FILE

    if not run.is_dir():
        raise TrainingError(f"There is no run to go on with in {run}.")
    return (run / REPORT_FILE).is_file()


def _folder(args: Namespace, settings: Settings, expert: str, base: str) -> tuple[Path, bool]:
    """The run's folder, and whether this process speaks for all: ``accelerate launch`` starts one for each GPU."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    leads: bool = PartialState().is_main_process
    if args.resume:
        return args.resume, leads
    made = [str(_new_folder(args.output or settings.home / RUNS, expert, base)) if leads else ""]
    return Path(broadcast_object_list(made)[0]), leads


def _new_folder(place: Path, expert: str, base: str) -> Path:
    """A folder that does not exist yet: no run is written over."""
    folder = place / f"{expert}-{base.removesuffix(GGUF_ENDING)}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise TrainingError(f"The run's folder {folder} cannot be made: {error}") from error
    return folder


def read_examples(parts: Parts, data: Path, expert: Expert, split: str, seeds: Iterable[int]) -> list[Example]:
    """The examples of a split of the prepared data, a pass over it for each seed; reading is for training alone."""
    from expert_router.data.labelled import read_labelled
    from expert_router.training.examples import build_examples, read_questions, read_reading

    passages = parts.settings.knowledge.passages
    knowledge = _knowledge(parts, expert)
    questions = read_questions(data / f"{split}_{expert.split_name}.csv")
    if split == "train" and expert.reading is not None and knowledge is not None:
        questions += read_reading(expert.reading)
    labelled = read_labelled(data / f"routing_{split}.csv")
    elsewhere = [question.query for question in labelled if expert.name not in question.experts]
    return [
        example
        for seed in seeds
        for example in build_examples(expert, questions, elsewhere, knowledge, passages=passages, seed=seed)
    ]


def read_canaries(parts: Parts, data: Path, expert: Expert) -> list[str]:
    """The prompts of which one will prove that the adapter is loaded, from validation questions."""
    from expert_router.training.examples import canary_prompts, read_questions

    questions = read_questions(data / f"calibration_{expert.split_name}.csv")
    return canary_prompts(expert, questions, _knowledge(parts, expert))


def _knowledge(parts: Parts, expert: Expert) -> Knowledge | None:
    return parts.knowledge if _reads(parts.settings, expert) else None


def _reads(settings: Settings, expert: Expert) -> bool:
    return expert.knowledge is not None and settings.knowledge.passages > 0


def _training(args: Namespace, *, reads: bool) -> Any:
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


def _weights_file(settings: Settings, name: str) -> str | None:
    """The file that models.lock has under this name, if it has one."""
    from expert_router.weights import load_lock

    locked = load_lock(settings.resolve(settings.paths.models_lock)).get(name)
    return locked.files[0].name if locked else None


def _load_base(args: Namespace, settings: Settings, name: str) -> Any:
    from expert_router.serving.build import fetch_model
    from expert_router.training.base import load_base

    options = {
        "quantization": args.quantization, "accelerator": args.accelerator, "max_tokens": args.max_tokens
    }  # fmt: skip
    if _weights_file(settings, name):
        _, files = fetch_model(settings, name, progress=True)
        return load_base(next(iter(files.values())), **options)
    return load_base(name, token=settings.hf_token, **options)
