"""How well the experts answer: ask every variant the same questions, measure each answer, compare question by question.

Refusal has two sides. Each question is asked with the passages as they are found, and once more without those that hold
its key: then the only right answer is that the texts do not say.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import EngineError, ExpertRouterError
from expert_router.evaluation.intervals import mean, paired_difference, share
from expert_router.evaluation.percentiles import p50_and
from expert_router.evaluation.variants import BASE
from expert_router.knowledge.grounding import is_unknown, texts_read, without_citations
from expert_router.training.examples import holds_key
from expert_router.types import AUTO, GENERAL, Answer, ChatRequest, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from expert_router.evaluation.intervals import Estimate
    from expert_router.evaluation.metrics import TextMetrics
    from expert_router.evaluation.questions import Question
    from expert_router.evaluation.variants import Variants
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import GenerationParams, Served

KEY, TOKEN_F1 = "key", "token_f1"
METRICS = {
    KEY: "key-fact accuracy",
    TOKEN_F1: "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "similarity": "embedding similarity",
}
"""Their names as people read them."""
FEWEST_FOR_GATE = 10
"""Of fewer questions the bootstrap knows too little to call one better than the other."""


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer, measured. ``metrics`` has those of ``METRICS`` that the question allows.

    ``answerable``: what was read of a passage holds the key; ``None`` where nothing was read, or there is no key.
    ``error`` is why there is no answer; then it counts as an empty one.
    """

    question: Question
    text: str
    metrics: Mapping[str, float]
    refused: bool
    answerable: bool | None
    answered_by: tuple[str, ...]
    served: Mapping[str, Served]
    route_s: float | None
    first_token_s: float | None
    answer_s: float | None
    tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class AskedExpert:
    """Everything that one expert was asked of one set of data: lists are in the questions' order.

    ``withheld`` are the answers without the passages that hold the key, ``unanswerable`` those to questions that no
    text answers, ``auto`` those when the router chose. ``serving`` is the variant that answers when the expert is
    chosen.
    """

    expert: str
    data: str
    by_variant: Mapping[str, list[Scored]]
    withheld: Mapping[str, list[Scored]]
    unanswerable: Mapping[str, list[Scored]]
    auto: list[Scored]
    serving: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """``precision``: of the refusals, those where no passage held the key; ``recall``: of those, the refused.

    ``wrongly`` is the share of answerable questions that were refused; ``unanswerable`` that of the questions that no
    text answers.
    """

    precision: Estimate | None
    recall: Estimate | None
    wrongly: Estimate | None
    unanswerable: Estimate | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds; each pair is the 50th and 95th percentile over answers."""

    first_token_s: tuple[float, float]
    answer_s: tuple[float, float]
    tokens: float
    """On average."""
    route_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class VariantResult:
    """``against_base`` are differences from the base, question by question; empty for the base itself."""

    metrics: dict[str, Estimate | None]
    against_base: dict[str, Estimate | None]
    held: Estimate | None
    """How often what was read of a passage holds the key."""
    refusal: Refusal | None
    latency: Latency | None
    failed: int
    served: dict[str, Served]


@dataclass(frozen=True, slots=True)
class Together:
    """Router and expert as one: ``regret`` is what the right expert, asked directly, would have gained."""

    went_to: dict[str, int]
    auto: dict[str, Estimate | None]
    right: dict[str, Estimate | None]
    regret: dict[str, Estimate | None]
    latency: Latency | None
    failed: int


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the variant that serves beats the base: the whole interval of the difference is above zero.

    Not with fewer than ``FEWEST_FOR_GATE`` questions.
    """

    variant: str
    metric: str
    difference: Estimate | None
    passed: bool


@dataclass(frozen=True, slots=True)
class ExpertResult:
    expert: str
    data: str
    questions: int
    variants: dict[str, VariantResult]
    together: Together | None
    gate: Gate | None


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask and measure. ``done`` is called after each answer."""

    variants: Variants
    metrics: TextMetrics
    params: GenerationParams
    at_once: int
    done: Callable[[], object] = lambda: None


def passes(
    variants: Variants, names: Sequence[str], questions: Sequence[Question], unanswerable: Sequence[Question]
) -> int:
    """How many answers ``ask_expert`` will get."""
    serving = variants.of(questions[0].expert)[-1] in names
    withheld = len(_withheld(variants, names, questions))
    return len(questions) * (len(names) + withheld + serving) + len(unanswerable) * withheld


def _withheld(variants: Variants, names: Sequence[str], questions: Sequence[Question]) -> list[str]:
    """The variants to ask without the answers; without keys nobody knows where these are."""
    return [name for name in names if name in variants.withheld and any(q.keys for q in questions)]


async def ask_expert(
    asking: Asking,
    expert: str,
    questions: Sequence[Question],
    names: Sequence[str],
    unanswerable: Sequence[Question] = (),
) -> AskedExpert:
    """Ask one expert's questions of one set of data of the variants in ``names``, which exist for it.

    Those of them that read are asked what is ``unanswerable`` too.

    Raises what the engine raises when a variant cannot be loaded, and ``EngineError`` when a variant never answers.
    """
    variants = asking.variants
    serving = variants.of(expert)[-1]
    by_variant: dict[str, list[Scored]] = {}
    withheld: dict[str, list[Scored]] = {}
    unanswered: dict[str, list[Scored]] = {}
    # First, as its times are those of serving: no prompt was read before. Its regret is against the serving variant.
    auto = await ask_all(asking, variants.configured, expert, questions, AUTO) if serving in names else []
    for name in names:
        model, dispatcher = variants.model(name, expert), variants.by_name[name]
        if name == serving:
            by_variant[name] = await _ask_right_expert(asking, dispatcher, expert, model, auto)
        else:
            by_variant[name] = await ask_all(asking, dispatcher, model, questions)
        if name in _withheld(variants, names, questions):
            withheld[name] = await ask_all(asking, variants.withheld[name], model, questions)
            unanswered[name] = await ask_all(asking, dispatcher, model, unanswerable)
    for name, answers in by_variant.items():
        if all(answer.error for answer in answers):
            raise EngineError(f"{name} of {expert!r} answered no question: {answers[0].error}")
    return AskedExpert(expert, questions[0].data, by_variant, withheld, unanswered, auto, serving)


async def _ask_right_expert(
    asking: Asking, dispatcher: Dispatcher, expert: str, model: str, auto: Sequence[Scored]
) -> list[Scored]:
    """The expert's answers; where the router chose it alone, the same question is not asked twice.

    A second answer would differ by the rounding of another batch, and that would count as regret.
    """
    answers = {n: answer for n, answer in enumerate(auto) if answer.answered_by == (expert,)}
    rest = [n for n in range(len(auto)) if n not in answers]
    for _ in answers:
        asking.done()
    if rest:
        asked = await ask_all(asking, dispatcher, model, [auto[n].question for n in rest])
        answers.update(zip(rest, asked, strict=True))
    return [answers[n] for n in range(len(auto))]


async def ask_all(
    asking: Asking, dispatcher: Dispatcher, model: str, questions: Sequence[Question], ask_for: str = ""
) -> list[Scored]:
    """``model`` is loaded before the first question; ``ask_for`` lets another name, like auto, stand in the request."""
    await dispatcher.engine.warm_up(dispatcher.experts[model])
    free = asyncio.Semaphore(asking.at_once)

    async def one(question: Question) -> Answer | ExpertRouterError:
        async with free:
            try:
                return await dispatcher.ask(
                    ChatRequest((Message("user", question.text),), ask_for or model, asking.params)
                )
            except ExpertRouterError as error:
                return error
            finally:
                asking.done()

    answers = await asyncio.gather(*map(one, questions))
    return [score_answer(q, answer, asking.metrics) for q, answer in zip(questions, answers, strict=True)]


def score_answer(question: Question, answer: Answer | ExpertRouterError, metrics: TextMetrics) -> Scored:
    """Measure an answer, the numbers of its sources left out; one that nobody gave counts as empty."""
    if isinstance(answer, ExpertRouterError):
        empty = _measure(question, "", metrics)
        return Scored(question, "", empty, False, None, (), {}, None, None, None, 0, str(answer))
    text = without_citations(answer.text) if answer.answered_by else ""
    given = [text for sources in answer.sources for text in texts_read(sources.found)]
    answerable = any(holds_key(text, question.keys) for text in given) if given and question.keys else None
    timings = answer.timings
    return Scored(
        question,
        answer.text,
        _measure(question, text, metrics),
        is_unknown(answer.text),
        answerable,
        answer.answered_by,
        answer.served,
        timings.route_s,
        timings.first_token_s,
        timings.total_s,
        answer.usage.completion_tokens,
    )


def _measure(question: Question, text: str, metrics: TextMetrics) -> dict[str, float]:
    """What can be said of this question: letters and meaning only compare with whole sentences."""
    references = question.references
    measured: dict[str, float | None] = {
        KEY: float(holds_key(text, question.keys)) if question.keys else None,
        TOKEN_F1: metrics.token_f1(text, references),
        "rouge_l": metrics.rouge_l(text, references),
        "chrf": metrics.chrf(text, references) if question.prose else None,
        "similarity": metrics.similarity(text, references) if question.prose else None,
    }
    return {name: value for name, value in measured.items() if value is not None}


def summarise(asked: AskedExpert) -> ExpertResult:
    base = asked.by_variant.get(BASE)
    variants = {
        name: VariantResult(
            {metric: _estimate(answers, metric) for metric in METRICS},
            {metric: _difference(answers, base, metric) for metric in METRICS} if base and name != BASE else {},
            share([answer.answerable for answer in answers if answer.answerable is not None]),
            refusal(answers, asked.withheld[name], asked.unanswerable.get(name, ()))
            if name in asked.withheld
            else None,
            _latency(answers),
            sum(answer.error is not None for answer in answers),
            {who: served for answer in answers for who, served in answer.served.items()},
        )
        for name, answers in asked.by_variant.items()
    }
    right = asked.by_variant.get(asked.serving)
    together = _together(asked.expert, asked.auto, right) if right and asked.auto else None
    count = len(next(iter(asked.by_variant.values())))
    return ExpertResult(asked.expert, asked.data, count, variants, together, _gate(asked.serving, variants))


def refusal(given: Sequence[Scored], withheld: Sequence[Scored], unanswerable: Sequence[Scored]) -> Refusal:
    """Over the questions as they are and without their answers; where nothing was given to read does not count.

    Of ``unanswerable`` a question that was not answered at all was not refused either.
    """
    answers = [answer for answer in (*given, *withheld) if answer.answerable is not None]
    return Refusal(
        share([not answer.answerable for answer in answers if answer.refused]),
        share([answer.refused for answer in answers if not answer.answerable]),
        share([answer.refused for answer in answers if answer.answerable]),
        share([answer.refused for answer in unanswerable]),
    )


def _estimate(answers: Sequence[Scored], metric: str) -> Estimate | None:
    values = [answer.metrics[metric] for answer in answers if metric in answer.metrics]
    return share([value > 0 for value in values]) if metric == KEY else mean(values)


def _difference(ours: Sequence[Scored], theirs: Sequence[Scored], metric: str) -> Estimate | None:
    """Both were asked the same questions, so that both have the metric or neither."""
    pairs = [(a.metrics[metric], b.metrics[metric]) for a, b in zip(ours, theirs, strict=True) if metric in a.metrics]
    return paired_difference([a for a, _ in pairs], [b for _, b in pairs])


def _together(expert: str, auto: Sequence[Scored], right: Sequence[Scored]) -> Together:
    compared = (KEY, TOKEN_F1)
    return Together(
        dict(Counter(_went_to(expert, answer) for answer in auto).most_common()),
        {metric: _estimate(auto, metric) for metric in compared},
        {metric: _estimate(right, metric) for metric in compared},
        {metric: _difference(right, auto, metric) for metric in compared},
        _latency(auto, routed=True),
        sum(answer.error is not None for answer in auto),
    )


def _went_to(expert: str, answer: Scored) -> str:
    if answer.error is not None:
        return "failed"
    who = answer.answered_by
    if not who:
        return "nobody (asked back or refused)"
    if who == (expert,):
        return "the right expert"
    if who == (GENERAL,):
        return "the base model"
    return "the right expert and others" if expert in who else "another expert"


def _latency(answers: Sequence[Scored], *, routed: bool = False) -> Latency | None:
    """Of the answers that an engine gave; there was a decision to wait for when they were ``routed``."""
    timed = [answer for answer in answers if answer.first_token_s is not None]
    if not timed:
        return None
    return Latency(
        p50_and(95, [a.first_token_s for a in timed]),
        p50_and(95, [a.answer_s for a in timed]),
        float(np.mean([a.tokens for a in timed])),
        p50_and(95, [a.route_s for a in timed]) if routed else None,
    )


def _gate(serving: str, variants: Mapping[str, VariantResult]) -> Gate | None:
    """By the key fact, or by token F1 where no question has one. ``None`` when one of the two was not asked."""
    if BASE not in variants or serving not in variants:
        return None
    differences = variants[serving].against_base
    metric = KEY if differences[KEY] is not None else TOKEN_F1
    difference = differences[metric]
    passed = difference is not None and difference.n >= FEWEST_FOR_GATE and difference.low > 0
    return Gate(serving, metric, difference, passed)
