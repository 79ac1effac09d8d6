from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import EngineError, NotReadyError
from expert_router.evaluation.answers import (
    AskedExpert,
    Asking,
    Scored,
    ask_expert,
    passes,
    refusal,
    score_answer,
    summarise,
)
from expert_router.evaluation.metrics import TextMetrics
from expert_router.evaluation.questions import Question
from expert_router.evaluation.variants import build_variants
from expert_router.knowledge.grounding import UNKNOWN
from expert_router.routing.policy import forced
from expert_router.serving.deployment import Library
from expert_router.serving.parts import Parts
from expert_router.settings import Settings
from expert_router.types import (
    Answer,
    Expert,
    Found,
    GenerationParams,
    Scores,
    Sources,
    Timings,
    Usage,
)
from support import BENZ, EXPERTS, NAPS, STAGES, FixedKnowledge, FixedRouter, WordEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.ports import Engine

METRICS = TextMetrics(WordEncoder())
NAP = Question("How long should a nap be?", "sleep", ("A nap of twenty minutes helps.",), ("twenty minutes", "20 min"))


def answer(text: str, *read: object, by: tuple[str, ...] = ("sleep",)) -> Answer:
    sources = (Sources("sleep", tuple(Found(passage, 1.0) for passage in read)),) if read else ()  # type: ignore[arg-type]
    timings = Timings(route_s=0.001, first_token_s=0.2, total_s=0.5)
    return Answer(NAP.text, text, forced("sleep", "Sleep"), by, "stop", Usage(9, 3), timings, sources)


# One answer


def test_an_answer_with_one_of_the_keys_is_right_and_numbers_of_sources_do_not_count() -> None:
    scored = score_answer(NAP, answer("A nap of twenty minutes [1] helps [2].", NAPS), METRICS)
    assert dict(scored.metrics) == pytest.approx(
        dict.fromkeys(("key", "token_f1", "rouge_l", "chrf", "similarity"), 1.0)
    )
    assert (scored.answerable, scored.refused, scored.tokens, scored.first_token_s) == (True, False, 3, 0.2)
    assert score_answer(NAP, answer("An hour."), METRICS).metrics["key"] == 0.0


@pytest.mark.parametrize(("read", "answerable"), [((STAGES, NAPS), True), ((STAGES,), False), ((), None)])
def test_answerable_means_that_a_passage_given_holds_the_key(read: tuple[object, ...], answerable: bool | None) -> None:
    assert (
        score_answer(NAP, answer("I don't know: the texts I have do not say.", *read), METRICS).answerable is answerable
    )


@pytest.mark.parametrize(
    ("places", "answerable"),
    [
        (("naps", "stages"), True),  # read whole
        (("stages", "naps"), False),  # its excerpt does not say it
        (("stages", "other excerpt"), True),
        (("stages", "no excerpt"), True),
    ],
)
def test_a_key_that_stands_in_the_unread_part_of_a_passage_is_not_answerable(
    places: tuple[str, ...], answerable: bool
) -> None:
    naps = replace(NAPS, text="Naps are old. A nap of twenty minutes helps. Pilots take them.")
    hits = {
        "stages": Found(STAGES, 1.2, STAGES.text),
        "naps": Found(naps, 1.1, "Naps are old. Pilots take them."),
        "other excerpt": Found(naps, 1.1, "Naps are old. A nap of twenty minutes helps."),
        "no excerpt": Found(naps, 1.1),
    }
    read = (Sources("sleep", tuple(hits[place] for place in places)),)
    assert score_answer(NAP, replace(answer("An hour [1]."), sources=read), METRICS).answerable is answerable


def test_the_first_passage_of_each_expert_was_read_whole() -> None:
    naps = Found(NAPS, 1.0, "Naps are old.")
    both = (Sources("cars", (Found(BENZ, 1.0), naps)), Sources("sleep", (naps,)))
    assert score_answer(NAP, replace(answer("An hour."), sources=both), METRICS).answerable is True
    assert score_answer(NAP, replace(answer("An hour."), sources=both[:1]), METRICS).answerable is False


def test_a_long_public_answer_is_compared_by_words_and_is_never_right_or_wrong() -> None:
    long = Question("Why?", "sleep", ("The body clock dips.",), (), "public", prose=False)
    scored = score_answer(long, answer("The body clock dips.", NAPS), METRICS)
    assert scored.metrics == {"token_f1": 1.0, "rouge_l": 1.0}
    assert scored.answerable is None


def test_a_question_back_and_a_failure_count_as_empty_answers() -> None:
    back = score_answer(NAP, answer("Is it about a nap of twenty minutes?", by=()), METRICS)
    failed = score_answer(NAP, EngineError("The engine is gone."), METRICS)
    assert back.metrics["key"] == failed.metrics["key"] == failed.metrics["token_f1"] == 0.0
    assert (back.error, failed.error) == (None, "The engine is gone.")


# Comparing


def scored(
    key: float, *, refused: bool = False, answerable: bool | None = True, by: tuple[str, ...] = ("sleep",)
) -> Scored:
    metrics = {"key": key, "token_f1": key}
    return Scored(NAP, "", metrics, refused, answerable, by, {}, 0.001, 0.1, 0.2, 5)


def asked(base: Sequence[float], ours: Sequence[float], auto: Sequence[Scored] = ()) -> AskedExpert:
    by_variant = {"base": [scored(key) for key in base], "base+knowledge": [scored(key) for key in ours]}
    return AskedExpert("sleep", "test", by_variant, {}, {}, list(auto), "base+knowledge")


def test_the_gate_opens_when_the_whole_interval_is_above_zero() -> None:
    better = summarise(asked([0.0] * 20, [1.0] * 12 + [0.0] * 8)).gate
    assert better is not None
    assert (better.variant, better.metric, better.passed) == ("base+knowledge", "key", True)
    assert better.difference is not None
    assert better.difference.value == pytest.approx(0.6)
    assert 0.3 < better.difference.low < 0.5
    assert 0.7 < better.difference.high < 0.9


@pytest.mark.parametrize(
    ("base", "ours"),
    [
        ([0.0] * 20, [0.0] * 20),
        ([1.0] * 20, [0.0] * 20),
        ([1.0] * 9 + [0.0] * 11, [0.0] * 10 + [1.0] * 10),  # one more of twenty says little
        ([0.0] * 4, [1.0] * 4),  # too few to tell
    ],
)
def test_the_gate_stays_shut_when_the_base_is_not_clearly_beaten(base: list[float], ours: list[float]) -> None:
    gate = summarise(asked(base, ours)).gate
    assert gate is not None
    assert not gate.passed


def test_without_the_base_nothing_is_compared() -> None:
    one = replace(asked([1.0], [1.0]), by_variant={"base+knowledge": [scored(1.0)]})
    result = summarise(one)
    assert result.gate is None
    assert result.variants["base+knowledge"].against_base == {}


def test_regret_is_what_the_right_expert_would_have_gained() -> None:
    auto = [scored(1.0), scored(0.0, by=("cars",)), scored(0.0, by=()), scored(1.0, by=("sleep", "cars"))]
    together = summarise(asked([0.0] * 4, [1.0, 1.0, 1.0, 0.0], auto)).together
    assert together is not None
    assert together.went_to == {
        "the right expert": 1,
        "another expert": 1,
        "nobody (asked back or refused)": 1,
        "the right expert and others": 1,
    }
    right, chosen, regret = (each["key"] for each in (together.right, together.auto, together.regret))
    assert right is not None
    assert chosen is not None
    assert regret is not None
    assert (right.value, chosen.value, regret.value) == (0.75, 0.5, 0.25)


def test_refusals_are_judged_by_what_the_passages_hold() -> None:
    given = [
        scored(1, answerable=True),
        scored(0, answerable=True, refused=True),  # wrongly
        scored(0, answerable=False, refused=True),  # retrieval missed it: rightly
        scored(1, answerable=None, refused=True),  # nothing was given to read
    ]
    withheld = [scored(0, answerable=False, refused=refused) for refused in (True, False, True, True)]
    measured = refusal(given, withheld, [])
    precision, recall, wrongly = measured.precision, measured.recall, measured.wrongly
    assert precision is not None
    assert recall is not None
    assert wrongly is not None
    assert (precision.value, recall.value, wrongly.value) == (4 / 5, 4 / 5, 1 / 2)
    nobody_refuses = refusal([scored(1)], [scored(0, answerable=False)], [])
    assert nobody_refuses.precision is None
    assert nobody_refuses.recall is not None
    assert nobody_refuses.recall.value == 0.0
    assert nobody_refuses.unanswerable is None


def test_what_no_text_answers_is_counted_by_itself() -> None:
    nobodys = [scored(0, answerable=None, refused=refused) for refused in (True, True, False, True)]
    measured = refusal([scored(1)], [scored(0, answerable=False, refused=True)], nobodys)
    assert measured.unanswerable is not None
    assert (measured.unanswerable.value, measured.unanswerable.n) == (3 / 4, 4)
    assert measured.recall is not None
    assert measured.recall.n == 1


# Asking


def asking(engine: Engine, done: list[int]) -> Asking:
    experts = {**EXPERTS, "sleep": replace(EXPERTS["sleep"], knowledge=Path("sleep"))}
    router = FixedRouter(Scores({"sleep": 0.9, "cars": 0.1}, 0.1))
    knowledge = FixedKnowledge({"sleep": (STAGES, NAPS, BENZ)})
    parts = Parts(Settings(), experts, progress=False)
    variants = build_variants(parts, router, engine, Library(knowledge, 2), {NAP.text: NAP.keys})
    return Asking(variants, METRICS, GenerationParams(64), 8, lambda: done.append(1))


async def test_every_variant_is_asked_every_question_and_again_without_the_answer() -> None:
    done: list[int] = []
    how = asking(EchoEngine(), done)
    questions = [NAP, replace(NAP, text="Does a nap help?")]
    names = how.variants.of("sleep")
    result = await ask_expert(how, "sleep", questions, names)
    assert len(done) == passes(how.variants, names, questions, []) == 8
    assert {name: [a.question.text for a in each] for name, each in result.by_variant.items()} == {
        name: [NAP.text, "Does a nap help?"] for name in ("base", "base+knowledge")
    }
    read, withheld = result.by_variant["base+knowledge"][0], result.withheld["base+knowledge"][0]
    assert (read.answerable, read.metrics["key"]) == (True, 1.0)  # the echo repeats the passages
    assert (withheld.answerable, withheld.metrics["key"]) == (False, 0.0)
    assert [each.answered_by for each in result.auto] == [("sleep",), ("sleep",)]
    assert result.by_variant["base"][0].answered_by == ("general",)
    summary = summarise(result).variants["base+knowledge"]
    assert summary.held is not None
    assert summary.held.value == 1.0
    assert summary.latency is not None
    assert summary.latency.answer_s[0] > 0


async def test_what_no_text_answers_is_put_to_those_that_read() -> None:
    done: list[int] = []
    how = asking(EchoEngine(), done)
    names = how.variants.of("sleep")
    nobodys = [Question("Who slept longest?", "sleep", (UNKNOWN,), ())]
    result = await ask_expert(how, "sleep", [NAP], names, nobodys)
    assert {name: [a.question for a in each] for name, each in result.unanswerable.items()} == {
        "base+knowledge": nobodys
    }
    assert len(done) == passes(how.variants, names, [NAP], nobodys) == 5
    measured = summarise(result).variants["base+knowledge"].refusal
    assert measured is not None
    assert measured.unanswerable is not None
    assert measured.unanswerable.value == 0.0  # the echo repeats the passages


async def test_the_right_expert_is_not_asked_again_what_it_has_answered() -> None:
    """Two answers to one question may differ by rounding, which is no regret of the router's."""
    done: list[int] = []
    how = asking(EchoEngine(), done)
    result = await ask_expert(how, "sleep", [NAP], ["base+knowledge"])
    assert result.by_variant["base+knowledge"] == result.auto
    assert how.variants.configured.engine.status()["finished"] == 2  # auto, and without the answer
    assert len(done) == 3


async def test_a_question_that_went_elsewhere_is_put_to_the_right_expert() -> None:
    how = asking(EchoEngine(), [])
    benz = Question("Who patented a car?", "cars", ("Carl Benz did.",), ("Benz",))
    result = await ask_expert(how, "cars", [benz], ["base", "instructions"])
    assert [each.answered_by for each in result.auto] == [("sleep",)]
    assert [each.answered_by for each in result.by_variant["instructions"]] == [("cars",)]


async def test_one_question_that_fails_in_both_passes_is_no_end() -> None:
    how = asking(EchoEngine(EchoScript(context_length=90)), [])
    result = await ask_expert(how, "sleep", [NAP, replace(NAP, text="Why? " * 100)], ["base", "base+knowledge"])
    assert [each.error is None for each in result.by_variant["base+knowledge"]] == [True, False]
    assert summarise(result).variants["base+knowledge"].failed == 1


async def test_without_the_variant_that_serves_the_router_is_not_asked() -> None:
    done: list[int] = []
    how = asking(EchoEngine(), done)
    result = await ask_expert(how, "sleep", [NAP], ["base"])
    assert (result.auto, len(done), passes(how.variants, ["base"], [NAP], [])) == ([], 1, 1)
    assert summarise(result).together is None


async def test_a_question_that_fails_is_counted_and_the_others_go_on() -> None:
    how = asking(EchoEngine(EchoScript(context_length=30)), [])
    long = replace(NAP, text="Why? " * 40)
    result = await ask_expert(how, "sleep", [NAP, long], ["base"])
    assert [each.error is None for each in result.by_variant["base"]] == [True, False]
    assert summarise(result).variants["base"].failed == 1


async def test_an_engine_that_answers_nothing_ends_the_evaluation_with_its_error() -> None:
    with pytest.raises(EngineError, match=r"^base of 'sleep' answered no question: .* before its first word"):
        await ask_expert(asking(EchoEngine(EchoScript(fail_before=True)), []), "sleep", [NAP], ["base"])


class RefusedAdapter(EchoEngine):
    async def warm_up(self, expert: Expert) -> None:
        raise NotReadyError(f"{expert.name} is refused.")


async def test_weights_that_are_refused_are_an_error_and_no_wrong_answers() -> None:
    with pytest.raises(NotReadyError, match="general is refused"):
        await ask_expert(asking(RefusedAdapter(), []), "sleep", [NAP], ["base"])
