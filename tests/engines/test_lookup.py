"""Tokens guessed from the prompt: the same answers in fewer steps, however many ask, however little room there is."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_gguf import prepare_llama

from expert_router.engines.batching import Batcher, start_pipeline
from expert_router.engines.loaded_model import REPRODUCIBLE
from expert_router.engines.lookup import GUESSES, LOOKUP, LookupRoom, lookup_settings
from expert_router.engines.openvino import OpenVINOEngine
from expert_router.errors import OverloadedError
from expert_router.serving.build import build_engine
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from support import SLEEP, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_router.engines.prepared import PreparedModel

TOKENS = 60
MOST = 7


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepare_llama(tmp_path_factory.mktemp("cache"), context_tokens=4096)


def start(prepared: PreparedModel, *, lookup: bool = True, **scheduler: int) -> Batcher:
    settings = {"max_num_seqs": 64, "enable_prefix_caching": True, **(scheduler or {"cache_size": 1})}
    device: dict[str, Any] = {"INFERENCE_NUM_THREADS": 2, **REPRODUCIBLE}
    return start_pipeline("lookup", prepared.folder, settings, {**device, LOOKUP: lookup}, step_timeout_s=60)


@pytest.fixture(scope="module")
def batcher(prepared: PreparedModel) -> Iterator[Batcher]:
    batcher = start(prepared)
    yield batcher
    batcher.close()


def prompts() -> list[list[int]]:
    """Of words that come again: there is something to find, and it goes on otherwise as often as not."""
    chance = random.Random(2)
    words = [[chance.randrange(3, 259) for _ in range(4)] for _ in range(30)]
    lengths = [chance.randrange(5, 30) for _ in range(48)]
    return [[token for _ in range(length) for token in chance.choice(words)] for length in lengths]


async def answer(batcher: Batcher, prompt: list[int], guesses: int = MOST, **changes: Any) -> list[list[int]]:
    """By step. The repetition penalty keeps random weights out of loops, which anybody could guess."""
    config = {"max_new_tokens": TOKENS, "ignore_eos": True, "repetition_penalty": 1.3, **changes}
    if guesses:
        config |= lookup_settings(guesses)
    return [batch.ids async for batch in batcher.generate(np.array([prompt], np.int64), config)]


def tokens(steps: list[list[int]]) -> list[int]:
    return [token for step in steps for token in step]


@pytest.fixture(scope="module")
def expected(prepared: PreparedModel) -> list[list[int]]:
    """The answers of the pipeline that guesses nothing, by prompt."""
    plain = start(prepared, lookup=False)

    async def ask() -> list[list[int]]:
        return [tokens(each) for each in await asyncio.gather(*(answer(plain, prompt, 0) for prompt in prompts()))]

    try:
        return asyncio.run(ask())
    finally:
        plain.close()


async def test_alone_it_says_the_same_in_fewer_steps(batcher: Batcher, expected: list[list[int]]) -> None:
    answers = [await answer(batcher, prompt) for prompt in prompts()[:8]]
    assert [tokens(steps) for steps in answers] == expected[:8]
    assert sum(map(len, answers)) < 8 * TOKENS / 2
    assert len({len(step) for steps in answers for step in steps}) > 3  # some guesses are right and some are not


@pytest.mark.parametrize(
    "scheduler", [{"cache_size": 1}, {"cache_size": 1, "max_num_batched_tokens": 64}, {"num_kv_blocks": 60}]
)
async def test_many_at_once_say_the_same_with_little_room_in_a_step_or_in_the_cache(
    prepared: PreparedModel, expected: list[list[int]], scheduler: dict[str, int]
) -> None:
    """The library alone answers wrongly with 60 blocks: it takes guesses that had to wait for checked ones."""
    batcher = start(prepared, **scheduler)
    answers = await asyncio.gather(*(answer(batcher, prompt) for prompt in prompts()))
    assert [tokens(steps) for steps in answers] == expected
    assert (batcher.counters.running, batcher.counters.finished) == (0, len(expected))
    await asyncio.to_thread(batcher.close)


async def test_one_that_needs_more_than_there_is_has_it_alone_until_it_is_used_up(
    prepared: PreparedModel, expected: list[list[int]]
) -> None:
    batcher = start(prepared, num_kv_blocks=8)
    config = {"eos_token_id": expected[0][9], "stop_token_ids": {expected[0][9]}, "ignore_eos": False}
    ended, too_long, *others = await asyncio.gather(
        answer(batcher, prompts()[0], max_new_tokens=1000, **config),
        answer(batcher, prompts()[1], max_new_tokens=1000),
        *(answer(batcher, prompt, max_new_tokens=10) for prompt in prompts()[2:8]),
        return_exceptions=True,
    )
    assert tokens(ended) == expected[0][: expected[0].index(expected[0][9]) + 1]  # type: ignore[arg-type]
    assert isinstance(too_long, OverloadedError)
    assert [tokens(steps) for steps in others] == [each[:10] for each in expected[2:8]]  # type: ignore[arg-type]
    await asyncio.to_thread(batcher.close)


@pytest.mark.parametrize("most", [1, 2, 3, 9])
async def test_an_answer_is_as_long_as_asked(batcher: Batcher, expected: list[list[int]], most: int) -> None:
    assert tokens(await answer(batcher, prompts()[0], max_new_tokens=most)) == expected[0][:most]


async def test_nothing_follows_the_end_also_when_the_end_was_guessed(
    batcher: Batcher, expected: list[list[int]]
) -> None:
    """Each of the answer's tokens is taken for the end by turns."""
    for number in (0, 5):
        for end in dict.fromkeys(expected[number]):
            how = {"ignore_eos": False, "eos_token_id": end, "stop_token_ids": {end}}
            got = tokens(await answer(batcher, prompts()[number], **how))
            assert got == expected[number][: expected[number].index(end) + 1]


async def test_a_seeded_sample_is_the_same_with_and_without_guesses(batcher: Batcher, prepared: PreparedModel) -> None:
    how = {"do_sample": True, "temperature": 0.7, "rng_seed": 5}
    plain = start(prepared, lookup=False)
    for prompt in prompts()[:4]:
        assert tokens(await answer(batcher, prompt, **how)) == tokens(await answer(plain, prompt, 0, **how))
    await asyncio.to_thread(plain.close)


async def test_who_leaves_gives_its_room_back_also_while_it_waits(
    prepared: PreparedModel, expected: list[list[int]]
) -> None:
    batcher = start(prepared, num_kv_blocks=60)
    config = {"max_new_tokens": 1800, "ignore_eos": True, **lookup_settings(MOST)}
    async with aclosing(batcher.generate(np.array([prompts()[0]], np.int64), config)) as large:
        await anext(large)
        waiting = [asyncio.create_task(answer(batcher, prompt)) for prompt in prompts()[:3]]
        await until(lambda: batcher.counters.running == 4)
        waiting[0].cancel()
        await until(lambda: batcher.counters.cancelled == 1)
        assert not any(task.done() for task in waiting[1:])
    assert [tokens(await task) for task in waiting[1:]] == expected[1:3]
    await until(lambda: batcher.counters.running == 0)
    assert batcher.counters.cancelled == 2
    await asyncio.to_thread(batcher.close)


def test_the_more_ask_the_fewer_tokens_are_guessed_and_a_quarter_of_a_step_is_left() -> None:
    room, config = LookupRoom(rows=256, blocks=10_000, seats=64), {"max_new_tokens": 100, GUESSES: MOST}
    granted = []
    while (taken := room.take(len(granted), 600, config)) is not None:
        granted.append(taken[GUESSES])
    assert granted[:16] == [MOST] * 16
    assert granted == sorted(granted, reverse=True)
    assert sum(granted) + len(granted) == 192
    room.give_back(0)
    assert room.take(99, 600, config) is not None


def test_it_holds_what_an_answer_may_come_to_need() -> None:
    room, config = LookupRoom(rows=256, blocks=64, seats=3), {"max_new_tokens": 424, GUESSES: MOST}
    assert room.take(1, 592, config) is not None  # 592 + 424 + 8 tokens are 32 blocks
    assert room.take(2, 593, config) is None
    assert room.take(3, 592, config) is not None
    assert room.take(4, 1, config) is None
    room.give_back(1)
    assert room.take(5, 1, {**config, "max_new_tokens": 1}) is not None
    assert room.take(6, 1, {**config, "max_new_tokens": 1}) is not None
    assert room.take(7, 1, {**config, "max_new_tokens": 1}) is None  # three seats


@pytest.mark.parametrize(("passages", "guesses"), [(5, MOST), (0, 0)])
def test_nothing_is_looked_up_where_nothing_is_read(passages: int, guesses: int) -> None:
    settings = load_settings("tiny", knowledge={"passages": passages})
    engine = build_engine(Parts(settings, {"sleep": SLEEP}, progress=False))
    assert isinstance(engine, OpenVINOEngine)
    assert engine._options.lookup_tokens == guesses
