from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ContextLengthError, EngineError, OverloadedError
from expert_router.types import Chunk, Expert, GenerationParams, Message, Usage

if TYPE_CHECKING:
    from expert_router.ports import Engine

SLEEP = Expert("sleep", "Sleep science", "", "")
CARS = Expert("cars", "Car history", "", "")
QUESTION = (
    Message("system", "You know sleep."),
    Message("user", "Hello"),
    Message("assistant", "Hi there"),
    Message("user", "What is REM sleep?"),
)


async def ask(
    engine: Engine,
    expert: Expert = SLEEP,
    params: GenerationParams | None = None,
    messages: tuple[Message, ...] = QUESTION,
) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(expert, messages, params or GenerationParams())]


async def read_into(received: list[str], engine: Engine) -> None:
    async for chunk in engine.stream(SLEEP, QUESTION, GenerationParams()):
        received.append(chunk.text)  # noqa: PERF401 - what came before an error stays


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def counts(engine: Engine) -> tuple[object, ...]:
    status = engine.status()
    return tuple(status[key] for key in ("running", "finished", "cancelled", "failed"))


async def test_the_answer_says_who_was_asked_and_what_word_by_word() -> None:
    engine = EchoEngine()
    chunks = await ask(engine)
    assert [chunk.text for chunk in chunks] == [
        "[Sleep", " science]", " You", " asked:", " What", " is", " REM", " sleep?", "",
    ]  # fmt: skip
    assert chunks[-1] == Chunk("", "stop", Usage(prompt_tokens=10, completion_tokens=8))
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks[:-1])
    assert counts(engine) == (0, 1, 0, 0)
    assert text_of(await ask(engine, CARS)).startswith("[Car history] You asked:")


async def test_sampling_does_not_change_the_answer() -> None:
    engine = EchoEngine()
    assert await ask(engine, params=GenerationParams(temperature=1.5, seed=7)) == await ask(engine)


@pytest.mark.parametrize(
    ("max_tokens", "text", "reason"),
    [(1, "[Sleep", "length"), (7, "[Sleep science] You asked: What is REM", "length"),
     (8, "[Sleep science] You asked: What is REM sleep?", "stop")],
)  # fmt: skip
async def test_max_tokens_cuts_the_answer(max_tokens: int, text: str, reason: str) -> None:
    chunks = await ask(EchoEngine(), params=GenerationParams(max_tokens=max_tokens))
    assert (text_of(chunks), chunks[-1].finish_reason) == (text, reason)
    assert chunks[-1].usage == Usage(10, max_tokens)


@pytest.mark.parametrize(
    ("stop", "text"),
    [(("REM",), "[Sleep science] You asked: What is "), (("is", "asked"), "[Sleep science] You "), (("[",), ""),
     (("absent", ""), "[Sleep science] You asked: What is REM sleep?"),
     (("ep?",), "[Sleep science] You asked: What is REM sle")],
)  # fmt: skip
async def test_the_answer_ends_before_the_first_stop_sequence(stop: tuple[str, ...], text: str) -> None:
    chunks = await ask(EchoEngine(), params=GenerationParams(stop=stop))
    assert (text_of(chunks), chunks[-1].finish_reason) == (text, "stop")
    assert chunks[-1].usage == Usage(10, len(text.split()))


@pytest.mark.parametrize(("max_tokens", "end"), [(3, "[Sleep science] You"), (9, "What is REM sleep? [Sleep")])
async def test_who_ignores_the_end_gets_exactly_max_tokens(max_tokens: int, end: str) -> None:
    chunks = await ask(EchoEngine(), params=GenerationParams(max_tokens=max_tokens, ignore_eos=True))
    assert text_of(chunks).endswith(end)
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("length", Usage(10, max_tokens))
    stopped = await ask(EchoEngine(), params=GenerationParams(max_tokens=99, ignore_eos=True, stop=("REM",)))
    assert (text_of(stopped), stopped[-1].finish_reason) == ("[Sleep science] You asked: What is ", "stop")


async def test_a_stop_sequence_beyond_max_tokens_is_not_reached() -> None:
    chunks = await ask(EchoEngine(), params=GenerationParams(max_tokens=2, stop=("REM",)))
    assert chunks[-1].finish_reason == "length"


async def test_white_space_and_a_missing_question_survive() -> None:
    messages = (Message("user", "two\n\n  lines \n"),)
    assert text_of(await ask(EchoEngine(), messages=messages)) == "[Sleep science] You asked: two\n\n  lines \n"
    assert text_of(await ask(EchoEngine(), messages=())) == "[Sleep science] You asked: "


async def test_delays_are_kept() -> None:
    engine = EchoEngine(EchoScript(first_token_delay_s=0.08, token_delay_s=0.02))
    start = time.perf_counter()
    stream = engine.stream(SLEEP, QUESTION, GenerationParams(max_tokens=4))
    await anext(stream)
    first = time.perf_counter() - start
    _ = [chunk async for chunk in stream]
    total = time.perf_counter() - start
    assert 0.08 <= first < total
    assert total >= 0.08 + 3 * 0.02


async def test_a_failure_before_the_first_word() -> None:
    engine = EchoEngine(EchoScript(fail_before=True))
    with pytest.raises(EngineError, match="before its first word"):
        await anext(engine.stream(SLEEP, QUESTION, GenerationParams()))
    assert counts(engine) == (0, 0, 0, 1)


@pytest.mark.parametrize("after", [0, 3, 8])
async def test_a_failure_midway(after: int) -> None:
    engine = EchoEngine(EchoScript(fail_after_tokens=after))
    received: list[str] = []
    with pytest.raises(EngineError, match=f"after {after} words"):
        await read_into(received, engine)
    assert len(received) == after
    assert counts(engine) == (0, 0, 0, 1)


async def test_a_failure_beyond_the_answers_end_does_not_happen() -> None:
    assert (await ask(EchoEngine(EchoScript(fail_after_tokens=9))))[-1].finish_reason == "stop"


async def test_closing_the_stream_frees_the_slot_in_the_same_turn() -> None:
    engine = EchoEngine()
    stream = engine.stream(SLEEP, QUESTION, GenerationParams())
    assert counts(engine) == (0, 0, 0, 0)  # a stream that nobody reads holds nothing
    await anext(stream)
    assert counts(engine) == (1, 0, 0, 0)
    closing = stream.aclose()
    with pytest.raises(StopIteration):  # it ends without waiting for the event loop
        closing.send(None)
    assert counts(engine) == (0, 0, 1, 0)


@pytest.mark.parametrize("script", [EchoScript(hang_after_tokens=0), EchoScript(first_token_delay_s=60)])
async def test_cancelling_the_waiting_task_frees_the_slot_in_the_same_turn(script: EchoScript) -> None:
    engine = EchoEngine(script)
    task = asyncio.create_task(ask(engine))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert counts(engine) == (1, 0, 0, 0)
    task.cancel()
    await asyncio.sleep(0)  # the turn in which the task is told
    assert counts(engine) == (0, 0, 1, 0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_hanging_answer_says_nothing_more() -> None:
    engine = EchoEngine(EchoScript(hang_after_tokens=2))
    received: list[str] = []
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_into(received, engine), 0.05)
    assert received == ["[Sleep", " science]"]
    assert counts(engine) == (0, 0, 1, 0)


async def test_the_slot_is_free_when_the_last_chunk_is_handed_over() -> None:
    engine = EchoEngine(EchoScript(max_slots=1))
    async with aclosing(engine.stream(SLEEP, QUESTION, GenerationParams())) as stream:
        async for chunk in stream:
            if chunk.finish_reason:
                assert counts(engine) == (0, 1, 0, 0)
                assert (await ask(engine))[-1].finish_reason == "stop"
                break
    assert counts(engine) == (0, 2, 0, 0)


async def test_no_more_than_max_slots_run() -> None:
    engine = EchoEngine(EchoScript(max_slots=2, hang_after_tokens=0))
    running = [asyncio.create_task(ask(engine)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as caught:
        await ask(engine)
    assert caught.value.retry_after_s > 0
    assert counts(engine)[0] == 2
    running[0].cancel()
    await asyncio.gather(running[0], return_exceptions=True)
    another = asyncio.create_task(ask(engine))
    await asyncio.sleep(0)
    assert counts(engine)[0] == 2
    await engine.close()
    ended = await asyncio.gather(running[1], another, return_exceptions=True)
    assert [type(error) for error in ended] == [EngineError, EngineError]
    assert counts(engine) == (0, 0, 1, 2)


async def test_a_conversation_beyond_the_context_is_refused_before_any_word() -> None:
    engine = EchoEngine(EchoScript(context_length=10))
    with pytest.raises(ContextLengthError, match="has 10 tokens; the context holds 10") as caught:
        await anext(engine.stream(SLEEP, QUESTION, GenerationParams()))
    assert caught.value.param == "messages"
    assert counts(engine) == (0, 0, 0, 1)


async def test_the_answer_ends_where_the_context_does() -> None:
    chunks = await ask(EchoEngine(EchoScript(context_length=13)))
    assert chunks[-1] == Chunk("", "length", Usage(10, 3))


async def test_a_script_may_be_one_experts_alone() -> None:
    engine = EchoEngine(by_expert={"cars": EchoScript(fail_before=True)})
    assert (await ask(engine, SLEEP))[-1].finish_reason == "stop"
    with pytest.raises(EngineError):
        await ask(engine, CARS)
    assert counts(engine) == (0, 1, 0, 1)


async def test_a_closed_engine_answers_nothing() -> None:
    engine = EchoEngine()
    await engine.warm_up(SLEEP)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await ask(engine)


async def test_a_thousand_streams_leave_no_slot_behind() -> None:
    engine = EchoEngine(EchoScript(token_delay_s=0.001))
    tasks = [asyncio.create_task(ask(engine)) for _ in range(1000)]
    await asyncio.sleep(0.002)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert counts(engine) == (0, 500, 500, 0)
