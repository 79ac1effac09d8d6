"""Who refuses, the expert or its rule: asked of an engine that leans as it is told."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.caching.engine import CachingEngine
from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine
from expert_router.knowledge.grounding import UNKNOWN, is_unknown
from expert_router.serving.abstention import doubt_of, match_of
from expert_router.types import Abstention, ChatRequest, Chunk, Done, Found, GenerationParams, Message, Scores, Usage
from support import BENZ, CARS, NAPS, SLEEP, STAGES, FixedKnowledge, FixedRouter, build

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.ports import Knowledge
    from expert_router.types import CacheUse, Expert

ANSWER = "[1] The eyes dart about under closed lids."
BY_DOUBT = Abstention("ab12", bias=0.0, doubt=1.0, match=0.0)
BRAVE = replace(BY_DOUBT, bias=-3.0)
SHY = replace(BY_DOUBT, bias=3.0)
KNOWLEDGE = FixedKnowledge({"sleep": [STAGES, NAPS], "cars": [BENZ]})
BOTH = Scores({"sleep": 0.9, "cars": 0.8}, 0.05)
FIRST = GenerationParams(max_tokens=1, probability=True)


@dataclass
class LeaningEngine(EchoEngine):
    """Refuses with a probability, by expert, and answers else; a given beginning it goes on from."""

    leaning: Mapping[str, float]
    tells: bool = True
    says: str = ""
    asked: list[GenerationParams] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        self.asked.append(params)
        self.read.append(messages[-1].content)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        refusing = self.leaning[expert.name]
        refuses = is_unknown(params.begin) or (not params.begin and refusing > 0.5)
        text = self.says or (UNKNOWN if refuses else ANSWER)
        first, *rest = text[:1], *text[1:].split(" ")
        pieces = [first, *(f"{word} " for word in rest)][: params.max_tokens]
        told = max(refusing, 1 - refusing) if params.probability and self.tells else None
        try:
            yield Chunk("")
            for n, piece in enumerate(pieces):
                yield Chunk(piece, probability=None if n else told)
            yield Chunk("", "stop", Usage(10, len(pieces)))
        finally:
            self.open -= 1


def experts(rule: Abstention | None, base: str = "echo") -> dict[str, Expert]:
    rules = {} if rule is None else {base: rule}
    return {e.name: replace(e, knowledge=Path(e.name), abstention=rules) for e in (SLEEP, CARS)}


async def said(
    engine: LeaningEngine, rule: Abstention | None, *, base: str = "echo", knowledge: Knowledge = KNOWLEDGE
) -> str:
    dispatcher = build(engine, experts=experts(rule, base), knowledge=knowledge)
    answer = await dispatcher.ask(ChatRequest((Message("user", "What do the eyes do?"),), "sleep"))
    return answer.text.strip()


@pytest.mark.parametrize(
    ("leaning", "rule", "text"),
    [
        (0.3, BY_DOUBT, ANSWER),
        (0.7, BY_DOUBT, UNKNOWN),
        (0.3, SHY, UNKNOWN),  # too brave by itself
        (0.9, BRAVE, ANSWER),  # too shy
        (0.96, BRAVE, UNKNOWN),  # log-odds of 3 are 0.953
    ],
)
async def test_the_rule_weighs_how_sure_the_expert_is(leaning: float, rule: Abstention, text: str) -> None:
    engine = LeaningEngine({"sleep": leaning})
    assert await said(engine, rule) == text
    assert engine.asked == [FIRST, GenerationParams(begin="I don't know" if text == UNKNOWN else "[")]


async def test_it_is_asked_twice_with_one_prompt_and_never_at_once() -> None:
    engine = LeaningEngine({"sleep": 0.3})
    await said(engine, BY_DOUBT)
    assert len(set(engine.read)) == 1
    assert (engine.open, engine.most_open) == (0, 1)


async def test_how_it_is_sampled_does_not_change_whether_it_refuses() -> None:
    engine = LeaningEngine({"sleep": 0.3})
    dispatcher = build(engine, experts=experts(SHY), knowledge=KNOWLEDGE)
    params = GenerationParams(max_tokens=40, temperature=1.5, top_p=0.5, seed=3, stop=("say",))
    answer = await dispatcher.ask(ChatRequest((Message("user", "Why?"),), "sleep", params))
    assert is_unknown(answer.text)
    assert engine.asked == [FIRST, replace(params, begin="I don't know")]


BY_MATCH = Abstention("ab12", bias=0.5, doubt=0.0, match=-1.0)


async def test_without_regard_to_its_doubt_the_expert_is_asked_once() -> None:
    engine = LeaningEngine({"sleep": 0.99})
    assert await said(engine, BY_MATCH, knowledge=replace(KNOWLEDGE, similarity=0.6)) == ANSWER
    assert engine.asked == [GenerationParams(begin="[")]


async def test_what_was_found_counts_too() -> None:
    by_match = replace(BY_MATCH, doubt=1e-3)

    def finding(similarity: float) -> FixedKnowledge:
        return replace(KNOWLEDGE, similarity=similarity)

    assert await said(LeaningEngine({"sleep": 0.99}), by_match, knowledge=finding(0.6)) == ANSWER
    assert await said(LeaningEngine({"sleep": 0.01}), by_match, knowledge=finding(0.4)) == UNKNOWN


@pytest.mark.parametrize(
    ("cosines", "match"), [([0.8], 0.8), ([0.8, 0.6], 0.7), ([0.6, 0.2, 0.8], 0.7), ([0.5, 0.5, 0.5], 0.5)]
)
def test_the_match_is_that_of_the_two_closest_passages(cosines: list[float], match: float) -> None:
    assert match_of([Found(NAPS, 1.0, "", cosine) for cosine in cosines]) == pytest.approx(match)


@pytest.mark.parametrize(
    ("engine", "rule", "base", "knowledge", "text"),
    [
        (LeaningEngine({"sleep": 0.9}), None, "echo", KNOWLEDGE, UNKNOWN),
        (LeaningEngine({"sleep": 0.9}), BRAVE, "another base", KNOWLEDGE, UNKNOWN),
        (LeaningEngine({"sleep": 0.1}), SHY, "echo", FixedKnowledge({}), ANSWER),
    ],
)
async def test_without_a_rule_or_anything_read_the_expert_has_its_own_way(
    engine: LeaningEngine, rule: Abstention | None, base: str, knowledge: FixedKnowledge, text: str
) -> None:
    assert await said(engine, rule, base=base, knowledge=knowledge) == text
    assert engine.asked == [GenerationParams()]


async def test_an_engine_that_tells_no_probabilities_is_not_overruled() -> None:
    engine = LeaningEngine({"sleep": 0.9}, tells=False)
    assert await said(engine, BRAVE) == UNKNOWN
    assert engine.asked[-1] == GenerationParams()


async def test_who_says_something_else_is_not_overruled() -> None:
    engine = LeaningEngine({"sleep": 0.1}, says="Hello there.")
    assert await said(engine, SHY) == "Hello there."


async def test_the_usage_is_that_of_the_answer_given() -> None:
    dispatcher = build(LeaningEngine({"sleep": 0.3}), experts=experts(SHY), knowledge=KNOWLEDGE)
    request = ChatRequest((Message("user", "Why?"),), "sleep")
    *_, done = [event async for event in dispatcher.stream(request)]
    assert isinstance(done, Done)
    assert done.usage == Usage(10, 2 + UNKNOWN[1:].count(" "))


async def test_who_leaves_frees_the_engine() -> None:
    engine = LeaningEngine({"sleep": 0.3})
    dispatcher = build(engine, experts=experts(SHY), knowledge=KNOWLEDGE)
    async with aclosing(dispatcher.stream(ChatRequest((Message("user", "Why?"),), "sleep"))) as events:
        async for event in events:
            if event.text:
                break
    assert engine.open == 0


async def test_of_two_experts_each_has_its_own_doubt() -> None:
    engine = LeaningEngine({"sleep": 0.9, "cars": 0.99})
    dispatcher = build(engine, FixedRouter(BOTH), experts=experts(BRAVE), knowledge=KNOWLEDGE)
    text = (await dispatcher.ask(ChatRequest((Message("user", "Why?"),)))).text
    sleep, cars = text.split(f"**{CARS.title}**")
    assert ANSWER in sleep
    assert UNKNOWN in cars


def test_doubt_is_the_log_odds_of_refusing_whatever_the_expert_begins() -> None:
    assert doubt_of(Chunk("I", probability=0.9)) == pytest.approx(doubt_of(Chunk("[", probability=0.1)))
    assert doubt_of(Chunk("[1", probability=0.9)) == pytest.approx(-2.197, abs=0.001)
    assert doubt_of(Chunk("I don't know: ", probability=0.5)) == pytest.approx(0.0)
    assert doubt_of(Chunk("I", probability=1.0)) == pytest.approx(13.8, abs=0.1)


def test_nothing_is_known_of_another_beginning_or_without_a_probability() -> None:
    assert doubt_of(Chunk("It", probability=0.9)) is None
    assert doubt_of(Chunk("I am", probability=0.9)) is None
    assert doubt_of(Chunk("", probability=0.9)) is None
    assert doubt_of(Chunk("[")) is None


async def test_both_questions_are_answered_from_the_cache_or_neither() -> None:
    engine = LeaningEngine({"sleep": 0.3})
    caching = CachingEngine(engine, MemoryStore(10**6, 60.0))
    dispatcher = build(caching, experts=experts(BY_DOUBT), knowledge=KNOWLEDGE)

    async def asked_of_the_engine(cache: CacheUse) -> int:
        before = len(engine.asked)
        params = GenerationParams(cache=cache)
        answer = await dispatcher.ask(ChatRequest((Message("user", "What do the eyes do?"),), "sleep", params))
        assert answer.text.strip() == ANSWER
        return len(engine.asked) - before

    assert [await asked_of_the_engine(cache) for cache in ("use", "use", "renew", "bypass", "use")] == [2, 0, 2, 2, 0]
    engine.leaning = {"sleep": 0.9}
    assert await asked_of_the_engine("use") == 0
    edited = replace(KNOWLEDGE, passages={"sleep": [replace(STAGES, text="The eyes move."), NAPS]})
    after = build(caching, experts=experts(BY_DOUBT), knowledge=edited)
    answer = await after.ask(ChatRequest((Message("user", "What do the eyes do?"),), "sleep"))
    assert (answer.text.strip(), answer.cache) == (UNKNOWN, {"sleep": "miss"})
