"""``expert-router train expert``, ``install`` and ``verify``: the parts of ``train`` that make experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.training_run import (
    Lessons,
    about_adapter,
    add_training_arguments,
    examples_of,
    knowledge_of,
    load_base_model,
    reads,
    run_training,
    trained_adapter,
    training_as_asked,
    weights_file,
)
from expert_router.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Mapping

    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.training.examples import Example
    from expert_router.types import Expert


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("expert")
    group.add_argument("--base", metavar="NAME", help="models.lock entry, folder or hub name (default: the configured)")
    add_training_arguments(group)
    group.add_argument("--passes", type=int, default=2, help="over the questions, with other distractors each time")
    group.add_argument("--quantization", choices=("none", "nf4"), default="none", help="nf4: QLoRA, needs a GPU")
    group.add_argument("--accelerator", choices=("none", "unsloth"), default="none", help="unsloth: needs a GPU")
    group.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was killed")
    group.add_argument("--preview", action="store_true", help="show what the loss counts, and stop")
    group.add_argument("--install", action="store_true", help="put the adapter in place when the run is finished")
    group.add_argument("--run", type=Path, metavar="RUN", help="install: the folder of a finished run")
    group.add_argument("--conversations", type=int, default=50, help="verify: how many are compared")


def train(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    from expert_router.serving.parts import Parts

    expert = chosen(args, experts)
    base_name = _base_name(args, settings, expert)
    if args.resume and _is_finished(args.resume):
        print(f"{args.resume} is finished; nothing was trained.")
        return _then(args, settings, expert, args.resume)
    if args.accelerator == "unsloth":
        from expert_router.training.unsloth import import_unsloth

        import_unsloth(weights_file(settings, base_name) or base_name)
    training = training_as_asked(args, reads=reads(settings, expert))
    parts = Parts(settings, experts, progress=True)
    lessons = Lessons(
        read_examples(parts, data, expert, "train", range(args.seed, args.seed + args.passes)),
        read_examples(parts, data, expert, "calibration", [args.seed]),
        read_canaries(parts, data, expert),
    )
    run = run_training(args, settings, expert, base=base_name, training=training, lessons=lessons)
    return 0 if run is None else _then(args, settings, expert, run)


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
    from expert_router.serving.embedded import prepared_for
    from expert_router.serving.parts import Parts

    expert = chosen(args, experts)
    base_name = _base_name(args, settings, expert)
    adapter = expert.adapter_for(base_name)
    if adapter is None:
        raise ConfigError(f"The expert {expert.name!r} has no adapter: expert-router train expert {expert.name}")
    training_as_asked(args, reads=True)  # says which packages are missing
    from expert_router.training.parity import LEAST_SAME_TOP, ServedModel, check_parity

    parts = Parts(settings, experts, progress=True)
    served, slot = prepared_for(parts, expert, base_name)
    validation = read_examples(parts, data, expert, "calibration", [args.seed])
    base = load_base_model(args, settings, base_name)
    parity = check_parity(base, adapter.path, ServedModel(served, slot), validation[: args.conversations])
    form = f"slot {slot} of a stack" if slot else "merged"
    print(f"{served.modules} modules, {form}; {parity.tokens} answer tokens of {parity.conversations} conversations.")
    print(f"The same likeliest token: {parity.same_top:.1%} (at least {LEAST_SAME_TOP:.0%} are expected).")
    print(f"Largest difference of a logit {parity.largest_difference:.2f}, mean {parity.mean_difference:.3f}.")
    return int(parity.same_top < LEAST_SAME_TOP)


def _install(run: Path, settings: Settings, expert: Expert) -> int:
    from expert_router.artifacts import install_adapter

    base, about = about_adapter(run, settings, expert.name)
    folder = settings.resolve(settings.paths.experts) / expert.name
    adapter = install_adapter(folder, base, trained_adapter(run), about)
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


def read_examples(parts: Parts, data: Path, expert: Expert, split: str, seeds: Iterable[int]) -> list[Example]:
    """The examples of a split of the prepared data, a pass over it for each seed; reading is for training alone."""
    from expert_router.data.labelled import read_labelled
    from expert_router.training.examples import read_questions, read_reading

    questions = read_questions(data / f"{split}_{expert.split_name}.csv")
    if split == "train" and expert.reading is not None and knowledge_of(parts, expert) is not None:
        questions += read_reading(expert.reading)
    labelled = read_labelled(data / f"routing_{split}.csv")
    elsewhere = [question.query for question in labelled if expert.name not in question.experts]
    return examples_of(parts, expert, questions, elsewhere, seeds)


def read_canaries(parts: Parts, data: Path, expert: Expert) -> list[str]:
    """The prompts of which one will prove that the adapter is loaded, from validation questions."""
    from expert_router.training.examples import canary_prompts, read_questions

    questions = read_questions(data / f"calibration_{expert.split_name}.csv")
    return canary_prompts(expert, questions, knowledge_of(parts, expert))
