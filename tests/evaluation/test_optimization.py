"""Which variants there are, what is said of each, and which may be installed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import ConfigError, DataError, EngineError
from expert_router.evaluation.answers import Scored
from expert_router.evaluation.intervals import Estimate
from expert_router.evaluation.optimization import (
    MeasuredVariant,
    Optimization,
    OptimizedExpert,
    Speed,
    key_facts,
    optimization_as_markdown,
    read_optimization,
    recommend,
    speed_of,
    variants_of,
    why_not,
    write_optimization,
)
from expert_router.evaluation.questions import Question
from expert_router.types import ModelVariant

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = Question("Who?", "cars", ("Carl Benz.",), ("Benz",))


def scored(right: float, *, first_s: float | None = 0.5, whole_s: float = 1.5, tokens: int = 11) -> Scored:
    return Scored(QUESTION, "", {"key": right}, False, None, (), {}, None, first_s, whole_s, tokens)


def measured(
    loss: float | None = None, *, megabytes: int = 100, answer_s: float = 1.0, questions: int = 200
) -> MeasuredVariant:
    difference = None if loss is None else Estimate(-loss, -loss - 0.03, -loss + 0.03, questions)
    speed = Speed((answer_s - 0.63, answer_s), 100.0)
    accuracy = Estimate(0.8 - (loss or 0.0), 0.7, 0.9, questions)
    return MeasuredVariant(ModelVariant("base", "q4_0"), "a" * 64, megabytes * 10**6, 1.5, speed, accuracy, difference)


RESULT = OptimizedExpert(
    "cars",
    "base",
    {
        "q8_0": measured(),
        "q4_0": measured(0.02, megabytes=60, answer_s=0.8),
        "20-layers-q8_0": measured(-0.01, megabytes=80, answer_s=0.7),
        "20-layers-q4_0": measured(0.035, megabytes=50, answer_s=0.5),
    },
    {"12-layers-q8_0": "it is refused: asked 'Who?' it answered 'Me'."},
)


def test_the_variants_are_the_base_and_those_made_of_it_that_have_an_adapter() -> None:
    pruned = {"base-20-layers": "base", "base-10-layers": "base", "other-2-layers": "other", "lean": "base"}
    found = variants_of("base", ["lean", "base", "base-20-layers", "other-2-layers"], pruned)
    assert found == {
        "q8_0": ModelVariant("base", "q8_0"),
        "q4_0": ModelVariant("base", "q4_0"),
        "lean-q8_0": ModelVariant("lean", "q8_0"),
        "lean-q4_0": ModelVariant("lean", "q4_0"),
        "20-layers-q8_0": ModelVariant("base-20-layers", "q8_0"),
        "20-layers-q4_0": ModelVariant("base-20-layers", "q4_0"),
    }
    assert next(iter(found)) == "q8_0"


def test_the_speed_is_of_what_comes_after_the_first_token_and_failures_have_none() -> None:
    speed = speed_of([scored(1.0), scored(0.0, first_s=0.7, whole_s=2.7, tokens=21), scored(0.0, first_s=None)])
    assert speed.first_token_s == pytest.approx((0.6, 0.69))
    assert speed.tokens_per_s == pytest.approx(30 / 3)
    assert speed.answer_s == pytest.approx(0.6 + 6.3)
    with pytest.raises(EngineError, match="No question was answered"):
        speed_of([scored(0.0, first_s=None)])


def test_key_facts_are_compared_question_by_question() -> None:
    reference = [scored(1.0), scored(1.0), scored(0.0), scored(0.0)]
    accuracy, difference = key_facts([scored(1.0), scored(0.0), scored(0.0), scored(0.0)], reference)
    assert (accuracy.value, accuracy.n) == (0.25, 4)
    assert difference is not None
    assert difference.value == -0.25
    assert -0.75 <= difference.low < -0.25 < difference.high == 0.0
    assert key_facts(reference, None)[1] is None
    with pytest.raises(DataError, match="The questions of cars have no keys"):
        key_facts([replace(scored(1.0), metrics={})], None)


def test_the_recommended_variant_is_the_fastest_or_the_smallest_that_loses_no_more_than_tolerated() -> None:
    assert recommend(RESULT, 0.02, "speed") == "20-layers-q8_0"
    assert recommend(RESULT, 0.02, "size") == "q4_0"
    assert recommend(RESULT, 0.04, "size") == "20-layers-q4_0"
    assert recommend(replace(RESULT, variants={"q8_0": measured()}), 0.0, "speed") == "q8_0"


@pytest.mark.parametrize(
    ("variant", "tolerance", "why"),
    [
        ("q8_0", 0.0, None),
        ("20-layers-q8_0", 0.0, None),
        ("q4_0", 0.02, None),
        ("q4_0", 0.019, "q4_0 of cars loses 2.0 points of key-fact accuracy against q8_0 on 200 questions; 1.9 are"),
        ("20-layers-q4_0", 0.02, "20-layers-q4_0 of cars loses 3.5 points of key-fact accuracy"),
        ("q5_0", 0.02, "q5_0 of cars was never measured, so nobody knows what it loses. Measured: q8_0, q4_0, "),
        ("12-layers-q8_0", 1.0, "12-layers-q8_0 of cars cannot be served: it is refused: asked"),
    ],
)
def test_what_may_not_be_installed_and_why(variant: str, tolerance: float, why: str | None) -> None:
    said = why_not(RESULT, variant, tolerance)
    assert said == why if why is None else said is not None and said.startswith(why)


def test_a_quick_look_installs_nothing() -> None:
    quick = replace(RESULT, variants={"q8_0": measured(questions=49), "q4_0": measured(0.0, questions=49)})
    assert why_not(quick, "q4_0", 0.02) == (
        "q4_0 of cars was measured on 49 questions, too few to tell what it loses: at least 50 are needed."
    )
    text = optimization_as_markdown(Optimization({}, [quick], 0.02, "speed"), {})
    assert "So few questions are a quick look: nothing is installed by it." in text


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    optimization = Optimization({"machine": "this one"}, [RESULT], 0.02, "size")
    write_optimization(tmp_path, optimization, {"variants.png": "What they cost"})
    assert read_optimization(tmp_path) == [RESULT]
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["recommended"] == {"cars": "q4_0"}
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| q4_0 | 60 MB | 1.5 s | 170 / 800 ms | 100 | 0.80 s | 78.0% (70.0% to 90.0%) | -2.0 (-5.0 to +1.0)" in text
    assert "| 20-layers-q4_0 |" in text
    assert text.count("loses too much") == 1
    assert "12-layers-q8_0 is refused: it is refused: asked 'Who?' it answered 'Me'." in text
    assert "![What they cost](variants.png)" in text


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"experts": [{"expert": "cars"}]}', '{"experts": 5}'])
def test_what_is_no_report_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match="is not the folder of a finished expert-router optimize: "):
        read_optimization(tmp_path)
