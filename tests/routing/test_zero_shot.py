"""The baseline on a tiny random model of BART-large-mnli's architecture, beside transformers' own pipeline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.errors import ConfigError
from expert_router.evaluation.zero_shot_shape import save_random_bart_mnli
from expert_router.routing.zero_shot import ZeroShotRouter
from support import CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION, make_home

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.zero_shot

TINY = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
TOPICS = {"sleep": "sleep science", "cars": "car history", "food": "bread and wine and how either is made"}
"""Of different lengths, so that the shorter ones are padded."""
LONG = "who was the first to sleep in a car " * 200
"""More words than the model has positions."""
QUESTIONS = [SLEEP_QUESTION, CARS_QUESTION, OTHER_QUESTION, "sleep", "", "zzz 睡眠?", LONG]
WORDS = sorted({*" ".join([*QUESTIONS, *TOPICS.values(), "This question is about ."]).replace("?", " ? ").split()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model: weights wide enough for its answers to differ, and a tokenizer that knows the words used here."""
    import torch

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_random_bart_mnli(path, **TINY, init_std=0.5)
    tokenizer = json.loads((path / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(WORDS)}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return path


def relabelled(folder: Path, copy: Path, labels: list[str]) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    return copy


def load(model: Path | str) -> ZeroShotRouter:
    return ZeroShotRouter(TOPICS, str(model), None, 2)


def by_the_pipeline(folder: Path, question: str) -> dict[str, float]:
    from transformers import pipeline

    classify: Any = pipeline("zero-shot-classification", model=str(folder), device="cpu")
    answer = classify(
        question, list(TOPICS.values()), hypothesis_template="This question is about {}.", multi_label=True
    )
    scores = dict(zip(answer["labels"], answer["scores"], strict=True))
    return {expert: scores[topic] for expert, topic in TOPICS.items()}


def test_scores_are_independent_probabilities_and_none_is_the_rest_of_the_best(folder: Path) -> None:
    router = load(folder)
    for question in QUESTIONS:
        scores = router.score(question)
        assert tuple(scores.experts) == router.experts == tuple(TOPICS)
        assert all(0 <= p <= 1 for p in (*scores.experts.values(), scores.none))
        assert scores.none == pytest.approx(1 - max(scores.experts.values()))
    assert router.score(SLEEP_QUESTION) == router.score(SLEEP_QUESTION, history=[CARS_QUESTION])


def test_the_tiny_model_tells_questions_and_experts_apart(folder: Path) -> None:
    """Without this, agreeing with the pipeline would mean little."""
    router = load(folder)
    scores = [p for question in (SLEEP_QUESTION, CARS_QUESTION) for p in router.score(question).experts.values()]
    assert min(abs(a - b) for n, a in enumerate(scores) for b in scores[:n]) > 1e-3


@pytest.mark.parametrize("question", [question for question in QUESTIONS if question])
def test_it_agrees_with_the_pipeline_of_transformers(folder: Path, question: str) -> None:
    assert load(folder).score(question).experts == pytest.approx(by_the_pipeline(folder, question), abs=1e-5)


@pytest.mark.parametrize(
    "labels", [["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], ["Contradiction", "Entailment", "Neutral"]]
)
def test_the_models_labels_say_which_output_is_which(folder: Path, tmp_path: Path, labels: list[str]) -> None:
    other = relabelled(folder, tmp_path / "model", labels)
    scores = load(other).score(SLEEP_QUESTION).experts
    assert scores == pytest.approx(by_the_pipeline(other, SLEEP_QUESTION), abs=1e-5)
    assert scores != pytest.approx(load(folder).score(SLEEP_QUESTION).experts, abs=1e-3)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["positive", "negative", "entailment"]])
def test_a_model_of_another_kind_is_refused(folder: Path, tmp_path: Path, labels: list[str]) -> None:
    other = relabelled(folder, tmp_path / "model", labels)
    with pytest.raises(ConfigError, match=r"is not an entailment model: its labels are \['") as raised:
        load(other)
    assert all(label.lower() in raised.value.message for label in labels)


def _damaged(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    return copy


@pytest.mark.parametrize("what", ["no folder", "empty folder", "half of the weights"])
def test_a_model_that_cannot_be_loaded_is_named_with_what_to_do(folder: Path, tmp_path: Path, what: str) -> None:
    model = tmp_path / "model"
    if what == "empty folder":
        model.mkdir()
    elif what == "half of the weights":
        _damaged(folder, model)
    with pytest.raises(ConfigError) as raised:
        load(model)
    message = raised.value.message
    assert message.startswith(f"The zero-shot model '{model}' cannot be loaded: ")
    assert message.endswith(
        "Name a local folder in router.zero_shot_model, or set HF_TOKEN in .env where the hub is reachable."
    )


def command(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from expert_router.commands import main; main()", *arguments],
        env={**os.environ, "EXPERT_ROUTER_HOME": str(home), "EXPERT_ROUTER_CONFIG": "echo", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_without_a_hub_the_command_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = command(make_home(tmp_path / "home"), "route", "--router", "zero_shot", SLEEP_QUESTION, **offline)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("expert-router: The zero-shot model 'facebook/bart-large-mnli' cannot be loaded: ")
    assert "Name a local folder in router.zero_shot_model, or set HF_TOKEN in .env" in line


def test_without_torch_it_names_the_extra_to_install() -> None:
    """None in ``sys.modules`` is how Python marks a module as not to be found."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from expert_router.routing.zero_shot import ZeroShotRouter\n"
        "ZeroShotRouter({'sleep': 'sleep science'}, 'any', None, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "expert_router.errors.ConfigError: "
        "The zero_shot router needs torch and transformers: pip install 'expert-router[zero-shot]'."
    )


def test_the_command_measures_it_beside_another_router(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "some.jsonl"
    data.write_text("".join(json.dumps({"query": query, "label": "sleep"}) + "\n" for query in QUESTIONS[:3]), "utf-8")
    done = command(
        make_home(tmp_path / "home"),
        *("bench", "routers", "--routers", "lexical,zero_shot", "--json", "--data", str(data)),
        EXPERT_ROUTER_ROUTER__ZERO_SHOT_MODEL=str(folder),
    )
    assert done.returncode == 0, done.stderr
    lexical, zero_shot = json.loads(done.stdout)["routers"]
    assert (lexical["router"], zero_shot["router"]) == ("lexical", "zero_shot")
    assert lexical["kinds"]["some"]["right"] == 1
    assert zero_shot["kinds"]["some"]["count"] == 3
    assert zero_shot["latency_ms"]["p50"] > lexical["latency_ms"]["p50"]


def test_the_default_shape_is_that_of_bart_large_mnli(folder: Path) -> None:
    """407 M parameters (https://huggingface.co/facebook/bart-large-mnli), counted without allocating them."""
    import torch
    from transformers import BartConfig, BartForSequenceClassification

    config = BartConfig.from_pretrained(folder)
    for key in (*TINY, "init_std"):  # what the tiny model overrides, back as it is without
        setattr(config, key, getattr(BartConfig(), key))
    with torch.device("meta"):
        model = BartForSequenceClassification(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 407_344_131
    assert (config.vocab_size, config.max_position_embeddings) == (50265, 1024)
    assert config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
