"""The same answer where the same was asked, one run for all who ask at once, and nothing left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from expert_router.caching.engine import LARGEST_BYTES, CachingEngine
from expert_router.caching.key import Keeping
from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ContextLengthError, EngineError, ExpertRouterError
from expert_router.types import Adapter, Chunk, GenerationParams, Message, Usage
from support import CARS, SLEEP, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from expert_router.types import Expert

QUESTION = (Message("user", "What is REM sleep?"),)
GREEDY = GenerationParams()
SAMPLED = GenerationParams(temperature=0.7, seed=1)


class StepEngine(EchoEngine):
    """Says a word each time that it is let, as often as ``words``; then ``fails`` or ends. It knows its weights."""

    def __init__(self, words: int = 3, *, fails: ExpertRouterError | None = None) -> None:
        super().__init__()
        self.words = words
        self.fails = fails
        self.let = asyncio.Semaphore(0)
        self.weights: str | None = "weights 1"

    async def stream(
        self,
        expert: Expert,  # noqa: ARG002
        messages: Sequence[Message],  # noqa: ARG002
        params: GenerationParams,
    ) -> AsyncGenerator[Chunk]:
        with self._slots.slot():
            yield Chunk("")
            for number in range(self.words):
                await self.let.acquire()
                yield Chunk(f"{number} ", probability=0.5 if params.probability and not number else None)
            if self.fails is not None:
                raise self.fails
        yield Chunk("", "stop", Usage(7, self.words))

    def identity(self, expert: Expert) -> str | None:
        return self.weights and f"{self.weights} {expert.adapters}"

    def say(self, words: int) -> None:
        for _ in range(words):
            self.let.release()

    def counts(self) -> dict[str, object]:
        return {name: count for name, count in self.status().items() if isinstance(count, int) and count}


def cached(engine: EchoEngine, **options: bool) -> CachingEngine:
    return CachingEngine(engine, MemoryStore(10**6, 60.0), Keeping(**options))


async def ask(
    engine: CachingEngine,
    params: GenerationParams = GREEDY,
    *,
    expert: Expert = SLEEP,
    messages: Sequence[Message] = QUESTION,
) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(expert, messages, params)]


def where(chunks: Sequence[Chunk]) -> str | None:
    assert [chunk.cache for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return chunks[-1].cache


def without_where(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [replace(chunk, cache=None) for chunk in chunks]


def counted(engine: CachingEngine) -> dict[str, int]:
    counts = engine.status()["cache"]
    assert isinstance(counts, dict)
    return {
        name: counts[name] for name in ("hits", "misses", "shared", "off", "unreadable", "too_large") if counts[name]
    }


async def nothing_runs(engine: CachingEngine) -> None:
    await until(lambda: not engine._tasks and not engine._flights, within_s=1.0)


class Client:
    """Takes one answer as it comes; ``leave`` before its end is a client that leaves."""

    def __init__(self, engine: CachingEngine) -> None:
        self.said: list[Chunk] = []
        self.task = asyncio.create_task(self._read(engine))

    async def _read(self, engine: CachingEngine) -> None:
        async with aclosing(engine.stream(SLEEP, QUESTION, GREEDY)) as chunks:
            async for chunk in chunks:
                self.said.append(chunk)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.said)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


# Given again


async def test_what_was_asked_before_is_answered_alike_piece_by_piece_and_without_the_engine() -> None:
    engine = StepEngine()
    caching = cached(engine)
    engine.say(3)
    asked = replace(GREEDY, probability=True)
    first, second = await ask(caching, asked), await ask(caching, asked)
    assert (where(first), where(second)) == ("miss", "hit")
    assert without_where(first) == without_where(second) == [c async for c in _said(engine, asked)]
    assert [chunk.text for chunk in second] == ["", "0 ", "1 ", "2 ", ""]
    assert second[1].probability == 0.5
    assert (counted(caching), engine.counts()) == ({"hits": 1, "misses": 1}, {"finished": 2})


async def _said(engine: StepEngine, params: GenerationParams) -> AsyncGenerator[Chunk]:
    engine.say(3)
    async for chunk in engine.stream(SLEEP, QUESTION, params):
        yield chunk


async def test_an_answer_that_was_cut_short_is_given_again_as_such() -> None:
    caching = cached(EchoEngine())
    for result in ("miss", "hit"):
        *_, last = await ask(caching, GenerationParams(max_tokens=2))
        assert (last.finish_reason, last.usage, last.cache) == ("length", Usage(4, 2), result)


@pytest.mark.parametrize(
    "other",
    [
        {"expert": CARS},
        {"expert": replace(SLEEP, title="The science of sleep")},
        {"messages": (Message("user", "What is REM sleep"),)},
        {"messages": (Message("system", "You know sleep."), *QUESTION)},
        {"params": GenerationParams(max_tokens=3)},
    ],
    ids=str,
)
async def test_another_question_is_another_answer(other: dict[str, object]) -> None:
    engine = EchoEngine()
    caching = cached(engine)
    assert where(await ask(caching)) == "miss"
    chunks = await ask(caching, **other)  # type: ignore[arg-type]
    assert where(chunks) == "miss"
    fresh = cached(engine)
    assert chunks == await ask(fresh, **other)  # type: ignore[arg-type]


async def test_another_adapter_and_other_weights_are_another_answer(tmp_path: Path) -> None:
    engine = StepEngine(words=0)
    caching = cached(engine)
    adapted = [replace(SLEEP, adapters={"base": Adapter(tmp_path, digit * 64)}) for digit in "12"]
    assert [where(await ask(caching, expert=expert)) for expert in (*adapted, *adapted)] == [
        *["miss"] * 2,
        *["hit"] * 2,
    ]
    engine.weights = "weights 2"
    assert where(await ask(caching, expert=adapted[0])) == "miss"


async def test_an_engine_that_cannot_tell_what_shapes_its_answers_is_always_asked() -> None:
    engine = StepEngine(words=0)
    engine.weights = None
    caching = cached(engine)
    assert [where(await ask(caching)) for _ in range(2)] == ["off", "off"]
    assert (counted(caching), engine.counts()) == ({"off": 2}, {"finished": 2})


async def test_what_chance_had_a_part_in_is_given_again_only_where_that_is_asked() -> None:
    caching = cached(EchoEngine())
    assert [where(await ask(caching, SAMPLED)) for _ in range(2)] == ["off", "off"]
    willing = cached(EchoEngine(), sampled=True)
    assert [where(await ask(willing, SAMPLED)) for _ in range(2)] == ["miss", "hit"]


async def test_a_request_may_ask_for_a_new_answer_which_is_kept_or_for_none_that_is_kept() -> None:
    engine = EchoEngine()
    caching = cached(engine)
    wishes = ("bypass", "use", "renew", "use", "bypass")
    results = [where(await ask(caching, replace(GREEDY, cache=wish))) for wish in wishes]  # type: ignore[arg-type]
    assert results == ["off", "miss", "miss", "hit", "off"]
    assert engine.status()["finished"] == 4


async def test_a_new_answer_is_not_that_of_a_run_that_began_before() -> None:
    engine = StepEngine(words=1)
    caching = cached(engine)
    before = Client(caching)
    await until(lambda: engine.counts() == {"running": 1})
    renewed = asyncio.create_task(ask(caching, replace(GREEDY, cache="renew")))
    await until(lambda: engine.counts() == {"running": 2})
    engine.say(2)
    assert where(await renewed) == "miss"
    await before.task
    assert engine.counts() == {"finished": 2}


# What is not kept


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (EchoScript(fail_before=True), EngineError),
        (EchoScript(fail_after_tokens=2), EngineError),
        (EchoScript(context_length=3), ContextLengthError),
    ],
)
async def test_an_answer_that_failed_is_not_kept(script: EchoScript, error: type[ExpertRouterError]) -> None:
    engine = EchoEngine(script)
    caching = cached(engine)
    for attempt in (1, 2):
        with pytest.raises(error):
            await ask(caching)
        assert (engine.status()["failed"], counted(caching)) == (attempt, {"misses": attempt})
    assert caching._store.status()["answers"] == 0


async def test_an_answer_that_ends_without_saying_why_is_not_kept() -> None:
    class Breaking(EchoEngine):
        async def stream(self, *_: object) -> AsyncGenerator[Chunk]:  # type: ignore[override]
            yield Chunk("half")

    caching = cached(Breaking())
    assert [[chunk.text for chunk in await ask(caching)] for _ in range(2)] == [["half"], ["half"]]
    assert counted(caching) == {"misses": 2}


async def test_an_answer_that_is_too_large_is_not_kept() -> None:
    caching = CachingEngine(EchoEngine(), MemoryStore(10**9, 60.0))
    long = (Message("user", "word " * (LARGEST_BYTES // 5)),)
    params = GenerationParams(max_tokens=10**6)
    for _ in range(2):
        assert where(await ask(caching, params, messages=long)) == "miss"
        await nothing_runs(caching)
    assert counted(caching) == {"misses": 2, "too_large": 2}


async def test_what_the_store_has_and_is_no_answer_is_asked_for_anew() -> None:
    class Mangled(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            value = await super().get(key)
            return value and value[:-1]

    caching = CachingEngine(EchoEngine(), Mangled(10**6, 60.0))
    for _ in range(2):
        assert where(await ask(caching)) == "miss"
        await nothing_runs(caching)
    assert counted(caching) == {"misses": 2, "unreadable": 1}


# At once


async def test_who_asks_the_same_at_once_shares_one_run_each_from_the_beginning() -> None:
    engine = StepEngine()
    caching = cached(engine)
    clients = [Client(caching) for _ in range(9)]
    await until(lambda: engine.counts() == {"running": 1})
    engine.say(2)
    await until(lambda: all(client.text == "0 1 " for client in clients))
    late = Client(caching)
    await until(lambda: late.text == "0 1 ")
    engine.say(1)
    await asyncio.gather(*(client.task for client in (*clients, late)))
    first, *others = (client.said for client in (*clients, late))
    assert (where(first), {where(other) for other in others}) == ("miss", {"shared"})
    assert {tuple(without_where(said)) for said in (first, *others)} == {tuple(without_where(first))}
    assert (engine.counts(), counted(caching)) == ({"finished": 1}, {"misses": 1, "shared": 9})
    assert where(await ask(caching)) == "hit"


async def test_a_slow_client_does_not_slow_the_others() -> None:
    engine = StepEngine()
    caching = cached(engine)
    slow = caching.stream(SLEEP, QUESTION, GREEDY)
    await anext(slow)
    engine.say(3)
    chunks = await ask(caching)
    assert where(chunks) == "shared"
    assert without_where([chunk async for chunk in slow]) == without_where(chunks)[1:]


@pytest.mark.parametrize("leaving", [0, 1])
async def test_who_leaves_first_does_not_end_the_answer_of_the_others(leaving: int) -> None:
    engine = StepEngine()
    caching = cached(engine)
    clients = [Client(caching), Client(caching)]
    engine.say(1)
    await until(lambda: all(client.text == "0 " for client in clients))
    await clients.pop(leaving).leave()
    assert engine.counts() == {"running": 1}
    engine.say(2)
    (staying,) = clients
    await staying.task
    assert staying.text == "0 1 2 "
    assert where(await ask(caching)) == "hit"


async def test_when_the_last_leaves_the_engines_slot_is_free_and_nothing_is_kept() -> None:
    engine = StepEngine()
    caching = cached(engine)
    clients = [Client(caching), Client(caching)]
    engine.say(2)
    await until(lambda: all(client.text == "0 1 " for client in clients))
    for client in clients:
        await client.leave()
    assert engine.counts() == {"cancelled": 1}
    await nothing_runs(caching)
    engine.say(3)
    assert where(await ask(caching)) == "miss"


async def test_closing_a_stream_frees_the_slot_before_it_returns() -> None:
    engine = StepEngine()
    stream = cached(engine).stream(SLEEP, QUESTION, GREEDY)
    await anext(stream)
    assert engine.counts() == {"running": 1}
    await stream.aclose()
    assert engine.counts() == {"cancelled": 1}


async def test_who_comes_while_a_run_is_being_given_up_has_one_of_his_own() -> None:
    class Reluctant(StepEngine):
        """Takes a while to end."""

        def __init__(self) -> None:
            super().__init__()
            self.ending, self.end = asyncio.Event(), asyncio.Event()

        async def stream(
            self, expert: Expert, messages: Sequence[Message], params: GenerationParams
        ) -> AsyncGenerator[Chunk]:
            try:
                async with aclosing(super().stream(expert, messages, params)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except asyncio.CancelledError:
                self.ending.set()
                await self.end.wait()
                raise

    engine = Reluctant()
    caching = cached(engine)
    leaver = Client(caching)
    await until(lambda: len(leaver.said) == 1)
    leaver.task.cancel()
    await engine.ending.wait()
    engine.say(3)
    assert where(await ask(caching)) == "miss"
    engine.end.set()
    await asyncio.gather(leaver.task, return_exceptions=True)
    assert where(await ask(caching)) == "hit"
    assert engine.counts() == {"cancelled": 1, "finished": 1}
    await nothing_runs(caching)


async def test_an_error_reaches_all_who_listen_and_the_next_one_asks_anew() -> None:
    engine = StepEngine(words=1, fails=EngineError("out of order"))
    caching = cached(engine)
    clients = [Client(caching) for _ in range(3)]
    await until(lambda: all(client.said for client in clients))
    engine.say(1)
    errors = await asyncio.gather(*(client.task for client in clients), return_exceptions=True)
    assert [str(error) for error in errors] == ["out of order"] * 3
    assert {client.text for client in clients} == {"0 "}
    engine.fails = None
    engine.say(1)
    assert where(await ask(caching)) == "miss"


async def test_many_who_come_and_leave_leave_nothing_behind() -> None:
    engine = StepEngine(words=5)
    caching = cached(engine)
    for number in range(40):
        clients = [Client(caching) for _ in range(number % 4 + 1)]
        for _ in range(number % 7):
            await asyncio.sleep(0)
        engine.say(number % 3)
        for client in clients:
            await client.leave()
        assert "running" not in engine.counts()
    await nothing_runs(caching)
    assert len(asyncio.all_tasks()) == 1


async def test_closing_ends_what_runs_with_an_error() -> None:
    engine = StepEngine()
    caching = cached(engine)
    client = Client(caching)
    await until(lambda: bool(client.said))
    await caching.close()
    with pytest.raises(EngineError, match="closed"):
        await client.task
    assert engine.counts() == {"cancelled": 1}
    await nothing_runs(caching)


async def test_it_is_the_engine_in_all_else() -> None:
    engine = EchoEngine()
    caching = cached(engine)
    await caching.warm_up(SLEEP)
    assert (caching.name, caching.served(SLEEP), caching.identity(SLEEP)) == (
        "echo",
        engine.served(SLEEP),
        engine.identity(SLEEP),
    )
    status = caching.status()
    assert {name: status[name] for name in engine.status()} == engine.status()


@pytest.mark.parametrize("turns", range(4))
async def test_closing_ends_who_has_just_asked_however_far_that_is(turns: int) -> None:
    caching = cached(StepEngine())
    client = Client(caching)
    for _ in range(turns):
        await asyncio.sleep(0)
    await caching.close()
    async with asyncio.timeout(5):
        if turns:
            with pytest.raises(EngineError, match="closed"):
                await client.task
        else:
            await client.leave()
