"""``expert-router train``: fit the router on the prepared data, fine-tune its encoder, or train an expert."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands import train_abstention, train_expert, train_feedback
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Mapping

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.knowledge.terms import TermIndex
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings
    from expert_router.training.reading import Reading
    from expert_router.types import Expert

HELP = "fit the router on the prepared data, fine-tune its encoder, or train an expert"
DIALOGUES = "dialogues/calibration.jsonl"
FP32_SUFFIX = "-fp32"
"""models.lock has the trainable weights of an encoder under its name with this suffix."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("router", "encoder", "expert", "install", "abstention", "verify"),
        help="router: the head and its thresholds, in seconds; encoder: the sentence encoder; expert: an adapter for "
        "one expert; install: put a trained adapter in place; abstention: find when it should say that it does not "
        "know; verify: compare what is served with what was trained. encoder, expert and verify need the train extra, "
        "abstention the evaluate extra",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which expert; all but router and encoder need it")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data (default: data/processed)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the artifact goes (default: the configured place)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, help="default: 8 for the encoder, 1 for an expert")
    parser.add_argument("--learning-rate", type=float, help="default: 2e-4 for the encoder, 4e-4 for an expert")
    train_expert.add_arguments(parser)
    train_abstention.add_arguments(parser)
    train_feedback.add_arguments(parser)
    group = parser.add_argument_group("encoder")
    group.add_argument(
        "--intents",
        type=Path,
        metavar="DIR",
        help="a folder with CLINC150's and BANKING77's files (see expert-router benchmark) to learn from as well",
    )
    group.add_argument("--start", type=Path, metavar="FILE", help="go on from weights that an earlier run saved")


def main(args: Namespace) -> int:
    from expert_router.artifacts import load_experts
    from expert_router.settings import load_settings

    if args.with_feedback is not None and args.what != "router":
        raise ConfigError("--with-feedback is for the router: expert-router train router --with-feedback FILE")
    settings = load_settings(args.config)
    data = args.data or settings.resolve(settings.paths.data) / "processed"
    experts = load_experts(settings.resolve(settings.paths.experts), settings.home)
    if args.what == "verify":
        return train_expert.verify(args, settings, data, experts)
    if args.what == "install":
        return train_expert.install(args, settings, experts)
    if args.what == "abstention":
        return train_abstention.calibrate(args, settings, data, experts)
    if args.what == "expert":
        return train_expert.train(args, settings, data, experts)
    if args.what == "encoder":
        return _train_encoder(args, settings, data, experts)
    return _train_router(args, settings, data, experts)


def _train_router(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    from expert_router.artifacts import MANIFEST
    from expert_router.data.dialogues import read_dialogues
    from expert_router.data.labelled import read_labelled
    from expert_router.serving.parts import Parts
    from expert_router.training.router import fit_follow_up, fit_router

    output = args.output or settings.resolve(settings.router.artifact)
    train, calibration = (read_labelled(data / f"routing_{split}.csv") for split in ("train", "calibration"))
    feedback = None
    if args.with_feedback is not None:
        in_place = output if (output / MANIFEST).is_file() else settings.resolve(settings.router.artifact)
        feedback = train_feedback.read_feedback(
            args.with_feedback,
            in_place,
            list(experts),
            train=train,
            calibration=calibration,
            test=read_labelled(data / "routing_test.csv"),
        )
        train = feedback.data.added_to(train)
    parts = Parts(settings, experts, progress=True)
    encoder, terms = parts.encoder, parts.terms
    started = time.perf_counter()
    artifact = fit_router(train, calibration, list(experts), encoder, terms, seed=args.seed, progress=True)
    if (talks := settings.resolve(settings.paths.data) / DIALOGUES).is_file():
        artifact = fit_follow_up(artifact, read_dialogues(talks), encoder, terms)
    if feedback is not None:
        artifact = replace(artifact, about={**artifact.about, "feedback": len(feedback.data.learnt)})
        if not train_feedback.may_be_saved(feedback, artifact, parts, force=args.force):
            return train_feedback.EXIT_FORGETS
    artifact.save(output)
    print(
        f"Fitted on {len(train)} questions, calibrated on {len(calibration)}, in {time.perf_counter() - started:.1f} s."
    )
    print(f"An expert is chosen from {artifact.accept:.0%} on. Saved in {output}.")
    print("How good it is: expert-router bench routers")
    return 0


def _train_encoder(args: Namespace, settings: Settings, data: Path, experts: Mapping[str, Expert]) -> int:
    try:
        from expert_router.training.encoder import EncoderTraining, pick_device, save_weights, train_encoder
        from expert_router.training.export import export_encoder
    except ImportError as error:
        raise ConfigError(
            f"Training the encoder needs more packages ({error}): pip install 'expert-router[train]'"
        ) from error
    from expert_router.data.intents import SOURCES, read_intents
    from expert_router.data.labelled import read_labelled
    from expert_router.routing.encoder import load_tokenizer
    from expert_router.serving.parts import Parts, fetch_model

    output = args.output or settings.resolve(settings.router.tuned_encoder or Path("artifacts/encoder"))
    intents = [read_intents(name, args.intents) for name in SOURCES] if args.intents else []
    _, base = fetch_model(settings, settings.router.encoder, progress=True)
    _, fp32 = fetch_model(settings, settings.router.encoder + FP32_SUFFIX, progress=True)
    questions = read_labelled(data / "routing_train.csv")
    parts = Parts(settings, experts, progress=True)
    readings = _readings(data, experts, parts)
    training = EncoderTraining(seed=args.seed)
    if args.epochs is not None:
        training = replace(training, epochs=round(args.epochs))
    if args.learning_rate is not None:
        training = replace(training, learning_rate=args.learning_rate)
    model = train_encoder(
        fp32["model.safetensors"].parent,
        load_tokenizer(base["tokenizer.json"]),
        questions,
        _passages(data, experts.values(), parts.terms),
        experts=list(experts),
        training=training,
        readings=readings,
        intents=intents,
        start=args.start,
        device=pick_device(),
        progress=True,
    )
    about = {
        "kind": "encoder",
        "base": settings.router.encoder,
        "questions": len(questions),
        "readings": len(readings),
        "intents": {data.name: data.sha256 for data in intents},
        "training": training.about(),
    }
    export_encoder(model.bert, base["model.onnx"], output, about)
    save_weights(model, output / "weights.pt")
    print(f"Trained on {len(questions)} questions. Saved in {output}. Next: expert-router train router")
    return 0


def _readings(data: Path, experts: Mapping[str, Expert], parts: Parts) -> list[Reading]:
    """The experts' questions with the text that answers them: those written for passages, and those with keys."""
    from expert_router.training.examples import read_questions, read_reading
    from expert_router.training.reading import build_readings

    readings: list[Reading] = []
    for name, expert in experts.items():
        questions = read_reading(expert.reading) if expert.reading is not None else []
        if (path := data / f"train_{expert.split_name}.csv").is_file():
            questions += read_questions(path)
        if name in parts.terms.experts:
            passages = parts.terms.passages_of(name)
            readings += build_readings(name, questions, passages, parts.knowledge, progress=True)
    return readings


def _passages(data: Path, experts: Iterable[Expert], terms: TermIndex) -> list[LabelledQuestion]:
    """Text of the experts' fields to learn their words from: what they read, and the answers to their questions."""
    from expert_router.data.labelled import LabelledQuestion
    from expert_router.knowledge.index import texts_of

    passages = [
        LabelledQuestion(text, frozenset([terms.experts[owner]]), "passage")
        for passage, owner in zip(terms.passages, terms.owner_P, strict=True)
        for text in [passage.title, *texts_of(passage)[1:]]
    ]
    for expert in experts:
        path = data / f"train_{expert.split_name}.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                passages += [
                    LabelledQuestion(row["answer"], frozenset([expert.name]), "passage") for row in csv.DictReader(file)
                ]
    return passages
