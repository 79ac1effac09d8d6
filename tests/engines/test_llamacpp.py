"""What the engine on llama.cpp means: an answer is what it is in the other engine; adapters, on random weights."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from test_openvino import (  # noqa: F401 - they run here with the engine of this module
    BASE,
    SLEEP,
    ask,
    counters,
    params,
    test_a_given_beginning_counts_as_part_of_the_answer,
    test_a_prompt_longer_than_the_context_is_refused_before_any_chunk,
    test_a_seed_makes_a_sampled_answer_repeat_and_another_changes_it,
    test_a_stop_sequence_ends_a_given_beginning_too,
    test_an_answer_goes_on_from_its_given_beginning,
    test_max_tokens_ends_with_length_and_is_counted,
    test_nobody_is_told_probabilities_unasked,
    test_the_first_chunk_says_accepted_and_only_the_last_how_it_ended,
    test_the_first_chunk_tells_the_first_tokens_probability,
    test_the_first_of_several_stop_sequences_counts_and_an_absent_one_does_not,
    test_the_real_model_answers_a_question_with_sense,
    test_the_system_message_reaches_the_model,
    test_without_a_seed_sampled_answers_differ,
    text_of,
)
from test_openvino_adapters import PROMPT, WEIGHTS, Bench, adapter_of
from test_openvino_adapters import ask as say
from tiny_gguf import Quantisation, write_llama, write_lora

from expert_router.artifacts import sha256_of
from expert_router.engines.adapter import read_lora
from expert_router.engines.canary import adapter_canary
from expert_router.engines.gguf import requantise
from expert_router.engines.llama_files import base_file, lora_file, write_lora_file
from expert_router.engines.llama_server import LlamaOptions, LlamaServer
from expert_router.engines.llamacpp import LlamaCppEngine, LlamaSource, greedy_answer
from expert_router.errors import EngineError, EngineTimeoutError, NotReadyError, WeightsError
from expert_router.serving.build import build_engine
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from expert_router.types import Adapter, Expert, Message, Served
from expert_router.weights import Canary
from processes import children_of, told_of
from support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from expert_router.engines.llama_files import BaseFile
    from expert_router.types import Quantization


@pytest.fixture(scope="session")
def loaded() -> Iterator[LlamaCppEngine]:
    """The engine as the settings make it, on the real small weights; each test may use it from its own event loop."""
    configured = load_settings("tiny")
    changed = configured.engine.model_copy(update={"name": "llamacpp", "max_batch_size": 4, "repetition_penalty": 1.0})
    engine = build_engine(Parts(configured.model_copy(update={"engine": changed}), {}, progress=False))
    asyncio.run(engine.warm_up(SLEEP))  # the base gives its recorded answer, or this fails
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
async def engine(loaded: LlamaCppEngine) -> LlamaCppEngine:
    await until(lambda: counters(loaded)["running"] == 0)
    return loaded


async def test_no_character_is_split_or_lost(engine: LlamaCppEngine) -> None:
    chunks = await ask(engine, "Say hello in Japanese.")
    assert not text_of(chunks).isascii()
    assert "\ufffd" not in text_of(chunks)


async def test_the_chat_template_is_applied_once(engine: LlamaCppEngine) -> None:
    server = engine._servers.loaded()[BASE]
    conversation = [("system", "You know sleep."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "What is REM?")]
    ids = server.encode([{"role": role, "content": content} for role, content in conversation])
    rendered = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in conversation)
    assert ids == server.token_ids(f"{rendered}<|im_start|>assistant\n")


async def test_a_long_prompt_that_was_left_is_not_read_to_its_end(engine: LlamaCppEngine) -> None:
    before = counters(engine)
    stream = engine.stream(SLEEP, [Message("user", "word " * 7000)], params())
    await anext(stream)
    reading = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await until(lambda: counters(engine)["running"] == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: counters(engine)["running"] == 0)
    assert counters(engine)["generated_tokens"] == before["generated_tokens"]


STEP_TIMEOUT_S = 4.0
"""Of random weights, on a busy machine; the real ones have the time that their size gives them."""

# Adapters


class LlamaBench(Bench):
    """A place to make experts with random adapters for a base of random weights."""

    def __init__(self, home: Path) -> None:
        weights = home / "random.gguf"
        write_llama(weights, Quantisation.F16, context_tokens=2048, blocks=2)
        self.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        super().__init__(home, "random", weights, lambda _: pytest.fail("this engine merges nothing"))

    def file(self, quantization: Quantization = "q8_0") -> BaseFile:
        return base_file("random", self.weights, self.sha256, self.home, quantization=quantization, progress=False)

    def answer(self, trained: Path | None = None, quantization: Quantization = "q8_0") -> str:
        base, loras = self.file(quantization), {}
        if trained:
            loras["own"] = lora_file(Adapter(trained, sha256_of(trained / WEIGHTS)), base, self.home)
        server = LlamaServer("recorder", base, loras, options())
        with ThreadPoolExecutor(1) as thread:  # not the test's own, which may have an event loop
            answer = thread.submit(greedy_answer, server, PROMPT, "own" if trained else None).result()
        server.close()
        return answer

    def expert(self, name: str, seed: int) -> Expert:
        trained = self.train(name, seed=seed)
        return self.install(name, trained, self.answer(trained))

    @asynccontextmanager
    async def serving(
        self, *experts: Expert, max_model_bytes: int = 1024**3, canary: Canary | None = None, slots: int = 4
    ) -> AsyncIterator[LlamaCppEngine]:
        source = LlamaSource(self.file, lambda adapter, base: lora_file(adapter, base, self.home), canary, self.sha256)
        engine = LlamaCppEngine(
            {"random": source},
            options(slots),
            default_model="random",
            max_model_bytes=max_model_bytes,
            experts=experts,
        )
        try:
            yield engine
        finally:
            await engine.close()


def options(slots: int = 4) -> LlamaOptions:
    return LlamaOptions(
        threads=2, lone_threads=1, kv_cache_bytes=64 * 1024**2, max_batch_size=slots, step_timeout_s=STEP_TIMEOUT_S
    )


def adapters(engine: LlamaCppEngine) -> dict[str, int]:
    """How many each loaded base has."""
    loaded: dict[str, dict[str, int]] = engine.status()["models"]  # type: ignore[assignment]
    return {name: model["adapters"] for name, model in loaded.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> LlamaBench:
    return LlamaBench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def experts(bench: LlamaBench) -> tuple[Expert, Expert]:
    return bench.expert("sleep", seed=1), bench.expert("cars", seed=2)


@pytest.fixture
def said(experts: tuple[Expert, Expert]) -> dict[str, str]:
    """What each of the experts was recorded to say, by name."""
    return {each.name: adapter_canary(adapter_of(each)).answer for each in experts}


def test_an_adapter_beside_the_base_is_the_adapter_merged_into_it(bench: LlamaBench, tmp_path: Path) -> None:
    """Also that the rows of q and k are those of the file: with them as PEFT has them it says something else."""
    trained, base = bench.train("both", seed=7), bench.file()
    merged = tmp_path / "merged.gguf"
    requantise(bench.weights, merged, lora=read_lora(trained), progress=False)
    server = LlamaServer("merged", replace(base, path=merged), {}, options())
    expected = greedy_answer(server, PROMPT, None)
    server.close()
    assert expected.strip()
    assert bench.answer(trained) == expected
    unmoved = tmp_path / "unmoved.gguf"
    assert write_lora_file(trained, replace(base, heads=replace(base.heads, query=32, key=16)), unmoved) == 14
    server = LlamaServer("unmoved", base, {"unmoved": unmoved}, options())
    assert greedy_answer(server, PROMPT, "unmoved") != expected
    server.close()


async def test_experts_each_answer_with_their_own_adapter_also_at_once_and_the_base_with_none(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str]
) -> None:
    """One slot, so that each finds in its cache what another adapter made of the same prompt."""
    sleep, cars = experts
    bare = Expert("birds", "Birds", "", "")
    said = {**said, "birds": bench.answer()}
    assert len(set(said.values())) == 3
    async with bench.serving(*experts, slots=1) as engine:
        order = (sleep, cars, bare, sleep, bare, cars)
        assert await asyncio.gather(*(say(engine, each) for each in order)) == [said[each.name] for each in order]
        assert adapters(engine) == {"random": 2}
        assert engine.served(sleep) == Served("random", adapter_of(sleep).sha256)
        assert len({engine.identity(each) for each in (*experts, bare)}) == 3


async def test_a_new_expert_is_added_while_answers_run_which_go_on_to_their_end(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str]
) -> None:
    sleep, cars = experts
    async with bench.serving(sleep) as engine:
        stream = engine.stream(sleep, [Message("user", PROMPT)], params(1500))
        for _ in range(4):
            await anext(stream)
        assert await say(engine, cars) == said["cars"]
        assert adapters(engine) == {"random": 1, "random#2": 2}
        assert [chunk async for chunk in stream][-1].finish_reason is not None
        await until(lambda: adapters(engine) == {"random#2": 2})  # the old one went with its last answer
        assert await say(engine, sleep) == said["sleep"]


async def test_adapters_beyond_the_bound_are_left_out_and_come_back_when_they_are_asked_for(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str]
) -> None:
    async with bench.serving(*experts, max_model_bytes=1) as engine:
        for expert in (*experts, *experts):
            assert await say(engine, expert) == said[expert.name]
            assert list(adapters(engine).values())[-1] == 1
            assert [engine.holds(each) for each in experts] == [each is expert for each in experts]


@pytest.mark.parametrize(
    ("size", "says"), [(0.3, "it answered .* instead of"), (1e-6, "its base answers .* as well")], ids=str
)
async def test_an_adapter_that_does_not_prove_itself_is_refused_again_and_again(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str], size: float, says: str
) -> None:
    """One that changes next to nothing answers as recorded, and so does the base without it."""
    trained = bench.train("birds", seed=8, size=size)
    refused = bench.install("birds", trained, said["cars"] if size > 0.1 else bench.answer(trained))
    async with bench.serving(*experts, refused) as engine:
        for _ in range(2):
            with pytest.raises(NotReadyError, match=rf"is refused: asked 'Which expert are you\?' {says}"):
                await say(engine, refused)
        assert await say(engine, experts[0]) == said["sleep"]


async def test_spoilt_files_are_refused_while_the_others_answer_and_taken_once_they_are_right(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str]
) -> None:
    spoilt = bench.expert("fish", seed=5)
    weights = adapter_of(spoilt).path / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    async with bench.serving(spoilt, *experts) as engine:
        for _ in range(2):
            with pytest.raises(NotReadyError, match=rf"cannot be used: .*{WEIGHTS} is missing or is not the file that"):
                await say(engine, spoilt)
        assert await say(engine, experts[0]) == said["sleep"]
        assert adapters(engine) == {"random": 2}
        weights.write_bytes(whole)
        assert await say(engine, spoilt) == adapter_canary(adapter_of(spoilt)).answer


async def test_an_adapter_that_the_server_was_not_given_is_never_answered_by_the_base(bench: LlamaBench) -> None:
    server = LlamaServer("random", bench.file(), {}, options())
    with pytest.raises(NotReadyError, match="loaded without the adapter unknown"):
        await anext(server.generate([1], params(), "unknown"))
    server.close()


def test_an_adapter_of_a_larger_model_is_refused(bench: LlamaBench, tmp_path: Path) -> None:
    write_llama(tmp_path / "larger.gguf", blocks=3)
    deeper = write_lora(tmp_path / "deeper", tmp_path / "larger.gguf")
    with pytest.raises(WeightsError, match="7 of the adapter's 21 modules are not in the base model"):
        write_lora_file(deeper.folder, bench.file(), tmp_path / "lora.gguf")


async def test_a_base_that_fails_its_canary_is_refused(bench: LlamaBench) -> None:
    async with bench.serving(canary=Canary("2+2?", "4.")) as engine:
        with pytest.raises(NotReadyError, match=r"asked '2\+2\?' it answered .* instead of '4\.'"):
            await ask(engine, "Hello")
        assert adapters(engine) == {}


def test_a_base_that_was_not_finished_is_made_again(bench: LlamaBench) -> None:
    base = bench.file()
    assert (base.context_tokens, base.kv_bytes, len(base.shapes)) == (2048, 2 * 2 * 2 * 32, 15)
    made = base.path.stat().st_mtime_ns
    assert bench.file().path.stat().st_mtime_ns == made
    base.path.write_bytes(base.path.read_bytes()[:-1])
    assert bench.file().size_bytes == bench.file().path.stat().st_size == base.size_bytes
    whole = bytearray(base.path.read_bytes())
    base.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    assert bench.file().path.read_bytes() == whole


async def test_closing_the_engine_ends_what_runs_and_waits_and_refuses_what_comes(
    bench: LlamaBench, experts: tuple[Expert, Expert]
) -> None:
    async with bench.serving(*experts) as engine:
        await engine.warm_up(experts[1])
        stream = engine.stream(experts[0], [Message("user", PROMPT)], params(1500))
        for _ in range(3):
            await anext(stream)
        waiting = asyncio.create_task(say(engine, experts[1]))
        await asyncio.wait([waiting], timeout=0.1)
        await engine.close()
        with pytest.raises(EngineError, match="shut down"):
            _ = [chunk async for chunk in stream]
        with pytest.raises(EngineError, match="shut down"):
            await waiting
        with pytest.raises(EngineError, match="shutting down"):
            await say(engine, experts[0])


# Its process


def own_processes() -> set[int]:
    """Of all llama.cpp's servers that this process has started."""
    return {child for child in children_of(os.getpid()) if "llama_process" in told_of(child, "cmdline")}


async def disturbed(
    engine: LlamaCppEngine, experts: tuple[Expert, Expert], how: signal.Signals, process: int
) -> list[BaseException]:
    """What those are told who are answered or wait when the process is sent a signal."""
    running = engine.stream(experts[0], [Message("user", PROMPT)], params(1500))
    for _ in range(3):
        await anext(running)
    waiting = asyncio.create_task(say(engine, experts[1]))
    await asyncio.wait([waiting], timeout=0.1)
    os.kill(process, how)
    failed: list[BaseException] = []
    with pytest.raises(EngineError) as ended:
        _ = [chunk async for chunk in running]
    failed.append(ended.value)
    with pytest.raises(EngineError) as ended:
        await waiting
    return [*failed, ended.value]


TOLD = {
    signal.SIGSTOP: (EngineTimeoutError, "The model hangs (it said nothing for 4 s)", "hung: it said nothing for 4 s"),
    signal.SIGKILL: (EngineError, "The model's process ended (killed", "killed; perhaps the machine's memory is full"),
}


@pytest.mark.parametrize("how", TOLD)
async def test_one_that_hangs_or_dies_is_replaced_and_all_its_requests_are_told(
    bench: LlamaBench, experts: tuple[Expert, Expert], said: dict[str, str], how: signal.Signals
) -> None:
    kind, told, why = TOLD[how]
    others = own_processes()
    async with bench.serving(*experts) as engine:
        for expert in experts:
            await engine.warm_up(expert)
        (process,) = own_processes() - others
        for error in await disturbed(engine, experts, how, process):
            assert type(error) is kind
            assert told in str(error)
        assert await say(engine, experts[0]) == said["sleep"]
        (other,) = own_processes() - others
        assert other != process
        (ended,) = engine.status()["ended"].values()  # type: ignore[attr-defined]
        assert (ended["times"], ended["last"]) == (1, why)
        await until(lambda: counters(engine, "random")["running"] == 0)
    assert own_processes() == others


async def test_one_that_stands_still_while_nobody_asks_is_left_alone(
    bench: LlamaBench, experts: tuple[Expert, Expert]
) -> None:
    others = own_processes()
    async with bench.serving(*experts) as engine:
        await engine.warm_up(experts[0])
        (process,) = own_processes() - others
        os.kill(process, signal.SIGSTOP)
        await asyncio.sleep(STEP_TIMEOUT_S / 40)  # nothing is to happen
        os.kill(process, signal.SIGCONT)
        assert await say(engine, experts[0])
        assert own_processes() - others == {process}
        assert engine.status()["ended"] == {}
