"""Several servers behind one engine: real ones on this machine, told to fail, killed and started again meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_core import to_json

from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.engines.remote.breaker import FAILURES_IN_A_ROW, LONGEST_PAUSE_S, RETRY_BURST, Breaker, RetryBudget
from expert_router.engines.remote.completions import request_body
from expert_router.engines.remote.draining import Draining
from expert_router.engines.remote.names import ServedModel
from expert_router.engines.remote.pool import LONGER_QUEUE, UpstreamPool, rendezvous
from expert_router.engines.remote.upstream import Upstream
from expert_router.errors import (
    ConfigError,
    EngineError,
    EngineTimeoutError,
    NotReadyError,
    OverloadedError,
    UpstreamsDownError,
)
from expert_router.evaluation.fake_vllm import FakeVLLM, Faults
from expert_router.types import Adapter, Chunk, Expert, GenerationParams, Message
from support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path

BASE = ServedModel("base", "base")
QUESTION = (Message("user", "one two three four"),)
NEVER_S = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def adapted(name: str, folder: Path) -> ServedModel:
    return ServedModel(f"{name}@{'ab' * 6}", "base", Adapter(folder, "ab" * 32))


def home_of(model: ServedModel, servers: list[FakeVLLM]) -> tuple[FakeVLLM, FakeVLLM]:
    """Where an idle pool of two sends the model's requests, and the other one."""
    first, second = sorted(servers, key=lambda server: rendezvous(model.name, server.url))
    return first, second


@asynccontextmanager
async def servers(count: int = 2, **options: Any) -> AsyncIterator[list[FakeVLLM]]:
    running = [FakeVLLM("base", **options) for _ in range(count)]
    for server in running:
        await server.start()
    try:
        yield running
    finally:
        for server in running:
            await server.kill()


@asynccontextmanager
async def pool_of(
    running: list[FakeVLLM],
    *,
    check_interval_s: float = NEVER_S,
    clock: Callable[[], float] | None = None,
    draining: Callable[[], Collection[str]] = frozenset,
    wanted: Callable[[], Collection[str]] | None = None,
    read_timeout_s: float = 5.0,
) -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool(
        [Upstream(server.url, None, 2.0, read_timeout_s) for server in running],
        check_interval_s=check_interval_s,
        draining=draining,
        wanted=wanted,
        clock=clock or Clock(),
    )
    try:
        yield pool
    finally:
        await pool.close()
        await asyncio.sleep(0)


def asked(pool: UpstreamPool, model: ServedModel = BASE) -> Any:
    return pool.stream(model, to_json(request_body(model.name, QUESTION, GenerationParams())))


async def text(pool: UpstreamPool, model: ServedModel = BASE) -> str:
    return "".join([chunk.text async for chunk in asked(pool, model)])


def states(pool: UpstreamPool) -> list[str]:
    return [each["state"] for each in pool.status()["upstreams"]]  # type: ignore[attr-defined]


# Who is asked


async def test_the_server_with_the_fewest_requests_is_asked() -> None:
    async with servers(3) as running, pool_of(running) as pool:
        for server in running:
            server.faults.hold_after = 1
        streams = [asked(pool) for _ in range(6)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert [each["outstanding"] for each in pool.status()["upstreams"]] == [2, 2, 2]  # type: ignore[attr-defined]
        assert [len(server.asked) for server in running] == [2, 2, 2]
        await asyncio.gather(*(stream.aclose() for stream in streams))
        assert [each["outstanding"] for each in pool.status()["upstreams"]] == [0, 0, 0]  # type: ignore[attr-defined]


async def test_an_adapter_is_loaded_once_by_its_first_requests_and_stays_where_it_is(tmp_path: Path) -> None:
    model = adapted("sleep", tmp_path)
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(model, running)
        answers = await asyncio.gather(*(text(pool, model) for _ in range(LONGER_QUEUE)))
        assert set(answers) == {f"[{model.name}] one two three four "}
        assert (home.loads, other.loads) == ([model.name], [])
        assert home.adapters == {model.name: str(tmp_path)}
        for _ in range(3):
            await text(pool, model)
        assert other.asked == []


async def test_experts_are_spread_over_servers_and_only_those_of_one_that_goes_move(tmp_path: Path) -> None:
    models = [adapted(f"expert{number}", tmp_path) for number in range(12)]
    async with servers(3) as running:
        async with pool_of(running) as pool:
            for model in models:
                await text(pool, model)
        first = [set(server.loads) for server in running]
        assert all(first)
        async with pool_of(running[:2]) as pool:
            for model in models:
                await text(pool, model)
        assert [set(server.loads) for server in running[:2]] != first[:2]
        assert first[0] <= set(running[0].loads)
        assert Counter(running[0].loads + running[1].loads).most_common(1)[0][1] == 1


async def test_a_queue_that_is_too_long_sends_an_experts_requests_to_another_server(tmp_path: Path) -> None:
    model = adapted("sleep", tmp_path)
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(model, running)
        home.faults.hold_after = 1
        streams = [asked(pool, model) for _ in range(LONGER_QUEUE + 1)]
        for stream in streams:
            await anext(stream)
        assert other.loads == []
        assert await text(pool, model)
        assert other.loads == [model.name]
        home.faults.released.set()
        await asyncio.gather(*(stream.aclose() for stream in streams))


async def test_a_question_goes_where_its_base_is() -> None:
    async with servers() as running, pool_of(running) as pool:
        running[1].base = "other"
        await pool.warm_up(BASE)
        for _ in range(4):
            assert await text(pool, ServedModel("other", "other")) == "[other] one two three four "
            assert await text(pool) == "[base] one two three four "
        assert set(running[0].asked) == {"base"}
        with pytest.raises(NotReadyError, match="does not serve 'third'; it serves"):
            await pool.warm_up(ServedModel("third", "third"))


# Adapters


async def test_a_server_that_was_started_anew_gets_its_adapter_again_before_the_first_word(tmp_path: Path) -> None:
    model = adapted("sleep", tmp_path)
    async with servers(1) as (server,), pool_of([server]) as pool:
        await pool.warm_up(model)
        assert await text(pool, model)
        await server.kill()
        await server.start()
        assert await text(pool, model) == f"[{model.name}] one two three four "
        assert server.loads == [model.name, model.name]


async def test_whoever_leaves_while_an_adapter_is_loaded_leaves_the_others_their_load(tmp_path: Path) -> None:
    model = adapted("sleep", tmp_path)
    async with servers(1) as (server,), pool_of([server]) as pool:
        server.faults.hold_adapters = True
        both = [asyncio.create_task(text(pool, model)) for _ in range(2)]
        await until(lambda: len(server.asked) == 2 and server.faults.held.is_set())
        both[0].cancel()
        await asyncio.wait({both[0]})
        server.faults.released.set()
        assert await both[1] == f"[{model.name}] one two three four "
        assert server.loads == [model.name]


async def test_an_adapter_that_one_server_cannot_load_is_asked_for_at_another(tmp_path: Path) -> None:
    model = adapted("sleep", tmp_path)
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(model, running)
        home.faults.refuse_adapters = True
        assert await text(pool, model)
        assert (home.loads, other.loads) == ([], [model.name])
        other.faults.refuse_adapters = True
        other.adapters.clear()
        with pytest.raises(NotReadyError, match=r"could not load the adapter .*No adapter found.*--max-lora-rank"):
            await text(pool, model)


async def test_adapters_of_experts_that_went_are_unloaded_when_nobody_is_answered_by_them(tmp_path: Path) -> None:
    sleep, cars = adapted("sleep", tmp_path), adapted("cars", tmp_path)
    wanted = {sleep.name, cars.name}
    async with (
        servers(1) as (server,),
        pool_of([server], check_interval_s=0.01, wanted=lambda: set(wanted)) as pool,
    ):
        server.adapters["others@000000000000"] = "not loaded from here"
        await text(pool, cars)
        server.faults.hold_after = 1
        async with aclosing(asked(pool, sleep)) as stream:
            await anext(stream)
            wanted.clear()
            await until(lambda: cars.name not in server.adapters)
            assert sleep.name in server.adapters
        await until(lambda: sleep.name not in server.adapters)
        assert list(server.adapters) == ["others@000000000000"]


# Failing


async def test_a_server_that_is_killed_before_the_first_word_is_replaced_by_another() -> None:
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(BASE, running)
        home.faults.hold_after = 0
        asking = asyncio.create_task(text(pool))
        await home.faults.held.wait()
        await home.kill()
        assert await asking == "[base] one two three four "
        assert len(other.asked) == 1
        assert pool.status()["retries"] == 1
        assert await text(pool) == "[base] one two three four "  # nobody listens there now


async def test_a_server_that_dies_after_the_first_word_is_an_error_and_nothing_is_said_twice() -> None:
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(BASE, running)
        home.faults.die_after = 2
        stream = asked(pool)
        assert [(await anext(stream)).text, (await anext(stream)).text] == ["[base] ", "one "]
        with pytest.raises(EngineError, match="broke off"):
            await anext(stream)
        assert other.asked == []


@pytest.mark.parametrize("status", [502, 503, 504, 429])
async def test_what_is_refused_for_a_time_is_asked_of_another(status: int) -> None:
    async with servers() as running, pool_of(running) as pool:
        home, other = home_of(BASE, running)
        home.faults.status = status
        assert await text(pool) == "[base] one two three four "
        assert (len(home.asked), len(other.asked)) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_what_the_request_may_be_the_cause_of_is_not_asked_again(status: int) -> None:
    async with servers() as running, pool_of(running) as pool:
        for server in running:
            server.faults.status = status
        with pytest.raises(EngineError, match=f"HTTP {status}"):
            await text(pool)
        assert sorted(len(server.asked) for server in running) == [0, 1]


async def test_a_question_that_kills_servers_does_not_kill_them_all() -> None:
    async with servers(4) as running, pool_of(running) as pool:
        for server in running:
            server.faults.die_after = 0
        with pytest.raises(EngineError, match="broke off"):
            await text(pool)
        assert sum(len(server.asked) for server in running) == 2


async def test_silence_is_not_waited_for_twice() -> None:
    async with servers() as running, pool_of(running, read_timeout_s=0.1) as pool:
        for server in running:
            server.faults.silent = True
        with pytest.raises(EngineTimeoutError, match=r"silent for 0\.1 s"):
            await text(pool)
        assert sorted(len(server.asked) for server in running) == [0, 1]


async def test_a_server_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    clock = Clock()
    async with servers() as running, pool_of(running, clock=clock) as pool:
        home, other = home_of(BASE, running)
        home.faults = Faults(status=429, headers={"retry-after": "20"})
        await text(pool)
        await text(pool)
        assert (len(home.asked), len(other.asked)) == (1, 2)
        assert sorted(states(pool)) == ["resting", "up"]
        assert pool.status()["unusable"] is None
        other.faults = Faults(status=429, headers={"retry-after": "30"})
        with pytest.raises(OverloadedError, match="HTTP 429"):
            await text(pool)
        with pytest.raises(OverloadedError, match="no more requests now") as caught:
            await text(pool)
        assert caught.value.retry_after_s == 20
        clock.now += 20.5
        home.faults = Faults()
        assert await text(pool)
        assert len(home.asked) == 2


async def test_one_that_fails_again_and_again_is_left_alone_then_tried_by_one_request() -> None:
    clock = Clock()
    async with servers() as running, pool_of(running, clock=clock) as pool:
        home, other = home_of(BASE, running)
        home.faults.status = 502
        for _ in range(FAILURES_IN_A_ROW + 2):
            assert await text(pool)
        assert (len(home.asked), len(other.asked)) == (FAILURES_IN_A_ROW, FAILURES_IN_A_ROW + 2)
        assert sorted(states(pool)) == ["open", "up"]

        clock.now += 1.3  # jittered, at most 1.2
        home.faults = Faults(hold_after=0)
        probe = asyncio.create_task(text(pool))
        await home.faults.held.wait()
        assert sorted(states(pool)) == ["half_open", "up"]
        await text(pool)
        assert len(home.asked) == FAILURES_IN_A_ROW + 1  # the probe alone
        home.faults.released.set()
        assert await probe
        assert states(pool) == ["up", "up"]


async def test_a_probe_whose_client_leaves_lets_another_try() -> None:
    clock = Clock()
    async with servers(1) as (server,), pool_of([server], clock=clock) as pool:
        server.faults.status = 502
        for _ in range(FAILURES_IN_A_ROW):
            with pytest.raises(EngineError, match="HTTP 502"):
                await text(pool)
        clock.now += 1.3
        server.faults = Faults(hold_after=0)
        probe = asyncio.create_task(text(pool))
        await server.faults.held.wait()
        with pytest.raises(UpstreamsDownError, match="half_open"):
            await text(pool)
        probe.cancel()
        await asyncio.wait({probe})
        server.faults = Faults()
        assert await text(pool)
        assert states(pool) == ["up"]


async def test_when_all_are_down_it_says_so_at_once_and_when_to_come_back() -> None:
    clock = Clock()
    async with servers() as running, pool_of(running, clock=clock) as pool:
        for server in running:
            await server.kill()
        for _ in range(FAILURES_IN_A_ROW):
            with pytest.raises(UpstreamsDownError, match=r"No server can be asked.*cannot be reached"):
                await text(pool)
        assert states(pool) == ["open", "open"]
        assert "127.0.0.1" in str(pool.status()["unusable"])
        with pytest.raises(UpstreamsDownError) as caught:
            await text(pool)
        assert 1.0 <= (caught.value.retry_after_s or 0) <= 1.2
        for server in running:
            await server.start()
        clock.now += 1.3
        assert await text(pool)
        assert pool.status()["unusable"] is None


# Checks


async def test_a_server_whose_check_fails_is_not_asked_until_one_goes_well() -> None:
    async with servers() as running, pool_of(running, check_interval_s=0.02) as pool:
        home, other = home_of(BASE, running)
        assert await text(pool)
        home.faults.broken_checks = True
        await until(lambda: "down" in states(pool))
        assert await text(pool)
        assert (len(home.asked), len(other.asked)) == (1, 1)
        home.faults = Faults()
        await until(lambda: states(pool) == ["up", "up"])
        assert await text(pool)
        assert len(home.asked) == 2


async def test_a_server_that_is_killed_and_started_again_while_requests_run_is_used_again() -> None:
    """Every question is answered whole; the one that had begun to be answered is the only error."""
    async with servers(3) as running, pool_of(running, check_interval_s=0.02, clock=time.monotonic) as pool:
        home = running[0]
        answers: list[str] = []
        stopped = asyncio.Event()

        async def client() -> None:
            while not stopped.is_set():
                answers.append(await text(pool))

        clients = [asyncio.create_task(client()) for _ in range(6)]
        await until(lambda: len(home.asked) > 5)
        home.faults.hold_after = 0  # what it is asked from now on, it does not begin to answer
        await home.faults.held.wait()
        await home.kill()
        before = len(answers)
        await until(lambda: len(answers) > before + 30)
        home.faults = Faults()
        await home.start()
        await until(lambda: len(home.asked) > 10 and "down" not in states(pool))
        stopped.set()
        await asyncio.gather(*clients)
        assert set(answers) == {"[base] one two three four "}


async def test_a_server_without_a_list_of_models_is_up_as_long_as_it_answers() -> None:
    async with servers(1, key="secret-of-the-server") as (server,), pool_of([server]) as pool:
        with pytest.raises(NotReadyError, match="API key"):
            await pool.warm_up(BASE)
        assert states(pool) == ["up"]


async def test_warm_up_is_content_with_one_server_and_says_what_is_wrong_with_all() -> None:
    async with servers() as running, pool_of(running) as pool:
        await running[0].kill()
        await pool.warm_up(BASE)
        assert sorted(states(pool)) == ["down", "up"]
        await running[1].kill()
        with pytest.raises(NotReadyError, match=rf"{running[0].url}.*{running[1].url}"):
            await pool.warm_up(BASE)


def test_commands_that_ask_in_one_loop_and_close_in_another_may_do_so() -> None:
    pool = UpstreamPool([Upstream("http://127.0.0.1:1/v1", None)])

    async def ask() -> None:
        with pytest.raises(NotReadyError):
            await pool.warm_up(BASE)

    asyncio.run(ask())
    asyncio.run(ask())
    asyncio.run(pool.close())


# Draining


async def test_one_that_drains_finishes_its_streams_and_gets_no_new_requests(tmp_path: Path) -> None:
    draining, model = Draining(tmp_path / "draining"), adapted("sleep", tmp_path)
    async with servers() as running, pool_of(running, draining=draining.addresses) as pool:
        home, other = home_of(BASE, running)
        home.faults.hold_after = 2
        async with aclosing(asked(pool)) as stream:
            said = (await anext(stream)).text
            draining.change(add=home.url)
            for _ in range(3):
                await text(pool)
            assert (len(home.asked), len(other.asked)) == (1, 3)
            assert {(e["state"], e["outstanding"]) for e in pool.status()["upstreams"]} == {("draining", 1), ("up", 0)}  # type: ignore[attr-defined]
            home.faults.released.set()
            said += "".join([chunk.text async for chunk in stream])
        assert said == "[base] one two three four "
        await pool.warm_up(model)
        assert (home.loads, other.loads) == ([], [model.name])
        draining.change(add=other.url)
        with pytest.raises(UpstreamsDownError, match=r"is draining.*is draining"):
            await text(pool)
        draining.change(remove=home.url)
        assert await text(pool)


def test_what_drains_can_be_written_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "draining"
    draining = Draining(file)
    assert draining.addresses() == frozenset()
    file.write_text("# since Monday\nhttp://a:1/v1/\n\nnonsense\n", "utf-8")
    assert draining.addresses() == {"http://a:1/v1"}
    assert "not an address" in caplog.text
    file.unlink()
    assert draining.addresses() == frozenset()
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        Draining(tmp_path / "file" / "draining").change(add="http://a:1/v1")


# Parts


def test_a_breakers_pause_grows_with_each_probe_that_fails_and_begins_anew_after_a_whole_answer() -> None:
    clock, pauses = Clock(), []
    breaker = Breaker(clock)
    for _ in range(FAILURES_IN_A_ROW - 1):
        breaker.failed(probe=breaker.begin())
    breaker.succeeded()
    for _ in range(FAILURES_IN_A_ROW - 1):
        breaker.failed(probe=breaker.begin())
    assert breaker.closed  # not in a row
    breaker.failed(probe=breaker.begin())
    for _ in range(8):
        pauses.append(breaker.wait_s)
        assert not breaker.admits
        clock.now += breaker.wait_s
        assert breaker.admits
        assert breaker.begin()
        assert not breaker.admits
        breaker.failed(probe=True)
    expected = [min(2.0**n, LONGEST_PAUSE_S) for n in range(8)]
    assert all(0.8 * due <= pause <= 1.2 * due for pause, due in zip(pauses, expected, strict=True))
    clock.now += breaker.wait_s
    breaker.answered(probe=breaker.begin())
    breaker.succeeded()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(probe=breaker.begin())
    assert breaker.wait_s <= 1.2


def test_retries_add_no_more_than_a_share_to_the_load() -> None:
    budget = RetryBudget()
    taken = 0
    for _ in range(1000):
        budget.earn()
        taken += budget.take()
    assert taken == pytest.approx(1000 * 0.2 + RETRY_BURST, abs=2)


# The engine


async def test_the_engine_answers_by_the_experts_adapter_wherever_it_is(tmp_path: Path) -> None:
    expert = Expert("sleep", "Sleep", "", "", adapters={"base": Adapter(tmp_path, "0123456789abcdef" * 4)})
    async with servers() as running:
        engine = OpenAIHTTPEngine([server.url for server in running], None, served_model_names("base"))
        await engine.warm_up(expert)
        chunks = [chunk async for chunk in engine.stream(expert, QUESTION, GenerationParams())]
        assert chunks[0] == Chunk("[sleep@0123456789ab] ")
        assert chunks[-1].finish_reason == "stop"
        status = engine.status()
        assert (status["finished"], status["unusable"]) == (1, None)
        assert [each["adapters"] for each in status["upstreams"]].count(["sleep@0123456789ab"]) == 1  # type: ignore[attr-defined]
        await engine.close()


def test_addresses_have_to_differ() -> None:
    with pytest.raises(ConfigError, match="addresses that differ"):
        OpenAIHTTPEngine(["http://a:1/v1", "http://a:1/v1/"], None, served_model_names("base"))
    with pytest.raises(ConfigError, match=r"engine\.upstreams"):
        OpenAIHTTPEngine([], None, served_model_names("base"))
