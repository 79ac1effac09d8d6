"""``train abstention``: what it asks, what it says when it cannot, and what it leaves with an adapter that ships."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line

from expert_router.artifacts import load_experts
from expert_router.commands.train_abstention import _ask, _questions
from expert_router.engines.echo import EchoEngine
from expert_router.errors import ConfigError
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from support import NAPS, ROOT, SLEEP, FixedKnowledge
from training_home import QUESTIONS, make_training_home, training_environment, write_training_data

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.types import Expert

KNOWLEDGE = FixedKnowledge({"sleep": [NAPS]})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_training_home(tmp_path / "checkout")


def parts_of(home: Path) -> Parts:
    settings = load_settings(None, home=home)
    settings = settings.model_copy(update={"knowledge": settings.knowledge.model_copy(update={"passages": 2})})
    tuned = settings.router.model_copy(update={"tuned_encoder": ROOT / "artifacts" / "encoder"})
    return Parts(
        settings.model_copy(update={"router": tuned}),
        load_experts(settings.resolve(settings.paths.experts), home),
        progress=False,
    )


def sleep_of(parts: Parts, unanswerable: Path | None) -> Expert:
    return replace(parts.experts["sleep"], unanswerable=unanswerable, unseen=None)


def test_questions_are_those_the_texts_answer_and_those_written_for_calibration(home: Path) -> None:
    data, parts = write_training_data(home), parts_of(home)
    nobodys = home / "nobodys.csv"
    with nobodys.open("w", encoding="utf-8", newline="") as file:
        rows = [("who naps longest", "calibration"), ("is it measured", "test"), ("how old is REM", "calibration")]
        csv.writer(file).writerows([("question", "split"), *rows])
    asked = _questions(parts, data, sleep_of(parts, nobodys))
    assert [(text, answerable) for text, _, answerable in asked] == [
        *((question, True) for question, _, _ in QUESTIONS),
        ("who naps longest", False),
        ("how old is REM", False),
    ]
    assert all(1 <= len(found) <= 2 for _, found, _ in asked)


def test_questions_that_were_written_without_a_look_at_the_texts_take_the_place_of_the_split(home: Path) -> None:
    data, parts = write_training_data(home), parts_of(home)
    unseen = home / "unseen.csv"
    question, answer, key = QUESTIONS[0]
    with unseen.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer", "key"), (f"Tell me, {question}", answer, key)])
    asked = _questions(parts, data, replace(sleep_of(parts, None), unseen=unseen))
    assert [text for text, _, answerable in asked if answerable] == [f"Tell me, {question}"]


def test_a_question_whose_answer_is_not_found_counts_for_neither_kind(home: Path) -> None:
    data, parts = write_training_data(home), parts_of(home)
    with (data / "calibration_sleep.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(("Who slept for a hundred years?", "Sleeping Beauty.", "Sleeping Beauty"))
    asked = _questions(parts, data, sleep_of(parts, None))
    assert [text for text, _, answerable in asked if answerable] == [question for question, _, _ in QUESTIONS]


def test_without_written_ones_the_answers_are_taken_out_of_what_is_found(home: Path) -> None:
    data, parts = write_training_data(home), parts_of(home)
    asked = _questions(parts, data, sleep_of(parts, None))
    without = {text: [hit.passage.text for hit in found] for text, found, answerable in asked if not answerable}
    assert list(without) == [question for question, _, _ in QUESTIONS]
    for question, _, key in QUESTIONS:
        assert without[question]
        assert not any(key in text for text in without[question])


def test_what_stands_in_the_way_is_said_in_one_line_and_changes_nothing(home: Path) -> None:
    write_training_data(home)
    manifest = (home / "experts" / "sleep" / "expert.toml").read_bytes()
    on_cpu = CommandLine(home, {**training_environment(home), "EXPERT_ROUTER_ENGINE__NAME": "openvino"})
    assert one_line(on_cpu.run("train", "abstention", "birds")) == "Which expert? Known: cars, sleep."
    said = one_line(on_cpu.run("train", "abstention", "sleep", "--false-refusals", "8"))
    assert said == "--false-refusals takes a share between 0 and 1, not 8.0."
    said = one_line(on_cpu.run("train", "abstention", "sleep"))
    assert said == "The expert 'sleep' has no adapter: expert-router train expert sleep"
    reads_nothing = CommandLine(home, {**on_cpu.settings, "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "0"})
    said = one_line(reads_nothing.run("train", "abstention", "sleep"))
    assert said == "The expert 'sleep' reads nothing, so it cannot miss an answer in what it reads."
    assert (home / "experts" / "sleep" / "expert.toml").read_bytes() == manifest


async def test_an_engine_that_does_not_tell_how_sure_it_is_cannot_be_calibrated() -> None:
    questions = [("Why nap?", KNOWLEDGE.search("sleep", "Why nap?"), True)]
    with pytest.raises(ConfigError, match="The engine 'echo' does not tell how sure 'sleep' is"):
        await _ask(EchoEngine(), SLEEP, questions)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_a_shipped_expert_refuses_as_rarely_as_was_asked_for(tmp_path: Path) -> None:
    home = tmp_path / "checkout"
    for folder in ("configs", "experts", "data", "artifacts"):
        shutil.copytree(ROOT / folder, home / folder)
    shutil.copy(ROOT / "models.lock", home)
    cache = load_settings("tiny").resolve(load_settings("tiny").paths.cache)
    cli = CommandLine(home, {"EXPERT_ROUTER_PATHS__CACHE": str(cache)})
    done = cli.run("train", "abstention", "sleep", "--false-refusals", "0.2", config="tiny", within_s=1200)
    assert done.status == 0, done.error
    shares = re.search(r"Refused by the rule: (\d+)% and (\d+)%", done.out)
    assert shares is not None
    false_refusals, refusals = map(int, shares.groups())
    assert 12 <= false_refusals <= 28
    assert refusals > false_refusals + 15
    rule = load_experts(home / "experts", home)["sleep"].abstention["smollm2-135m-instruct"]
    assert rule.doubt == 0 > rule.match  # the first token of this base tells next to nothing beside the match
