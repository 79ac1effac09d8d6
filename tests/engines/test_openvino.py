"""What the embedded engine means, on the smallest real model; what only needs a model's shape runs on a random one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import byte_tokens, prepare_llama

from expert_router.engines.detokenizer import Detokenizer
from expert_router.engines.loaded_model import OpenVINOOptions
from expert_router.engines.openvino import ModelSource, OpenVINOEngine
from expert_router.errors import ContextLengthError, EngineError, NotReadyError, WeightsError
from expert_router.serving.embedded import prepare_base_model
from expert_router.serving.parts import fetch_model
from expert_router.settings import load_settings
from expert_router.types import Expert, GenerationParams, Message
from expert_router.weights import Canary
from processes import children_of
from support import eventually, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from expert_router.engines.loaded_model import LoadedModel
    from expert_router.engines.prepared import PreparedModel
    from expert_router.types import Adapter, Chunk

BASE = "smollm2-135m-instruct"
SLEEP = Expert("sleep", "Sleep science", "", "")
QUESTIONS = (
    "What is the opposite of hot?",
    "Name a colour.",
    "What is 2+2?",
    "Who wrote Hamlet?",
    "List three fruits.",
    "Say hello in Japanese.",
    "Write a poem about the sea.",
    "Why do we sleep?",
)
LONG_STORY = "Write a very long story about a dragon."
MIXED_TEXT = "日本語のテキスト, 😀🎉👩‍👩‍👧 naïve café e\u0301 — Ünïcödé, العربية, हिन्दी, 한국어 🇩🇪"


def options(**changes: object) -> OpenVINOOptions:
    values = {
        "default_model": BASE, "threads": 2, "max_model_bytes": 6 * 1024**3, "kv_cache_bytes": 1024**3,
        "max_batch_size": 16, "reproducible": True,
    }  # fmt: skip
    return OpenVINOOptions(**{**values, **changes})  # type: ignore[arg-type]


def params(max_tokens: int = 16, **changes: object) -> GenerationParams:
    return GenerationParams(max_tokens, **changes)  # type: ignore[arg-type]


async def ask(
    engine: OpenVINOEngine, question: str, how: GenerationParams | None = None, *, expert: Expert = SLEEP
) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(expert, [Message("user", question)], how or params())]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def counters(engine: OpenVINOEngine, model: str = BASE) -> dict[str, int]:
    return engine.status()["models"][model]  # type: ignore[index,no-any-return]


@pytest.fixture(scope="session")
def engine() -> Iterator[OpenVINOEngine]:
    """The real engine on the real small weights, loaded once; each test may use it from its own event loop."""
    configured = load_settings("tiny")
    locked, _ = fetch_model(configured, BASE, progress=False)
    source = ModelSource(lambda adapter: prepare_base_model(configured, BASE, adapter, progress=False), locked.canary)
    engine = OpenVINOEngine({BASE: source}, options())
    asyncio.run(engine.warm_up(SLEEP))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def model(engine: OpenVINOEngine) -> LoadedModel:
    return engine._models.loaded()[BASE]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that holds a model of random weights with a context of 256 tokens."""
    cache = tmp_path_factory.mktemp("cache")
    prepare_llama(cache)
    return cache


class RandomModels:
    """Engines on random weights that count how often a model was prepared, which is once per load."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.prepared: list[str] = []

    def source(self, name: str = "random", canary: Canary | None = None, **changes: int) -> ModelSource:
        def prepare(adapter: Adapter | None) -> PreparedModel:
            self.prepared.append(name)
            return prepare_llama(self._cache, name=name, adapter=adapter, **changes)

        return ModelSource(prepare, canary)

    def engine(self, source: ModelSource | None = None, **changes: object) -> OpenVINOEngine:
        return OpenVINOEngine({"random": source or self.source()}, options(default_model="random", **changes))


@pytest.fixture
async def random_models(random_model: Path) -> RandomModels:
    return RandomModels(random_model)


@pytest.fixture
async def random_engine(random_models: RandomModels) -> AsyncIterator[OpenVINOEngine]:
    engine = random_models.engine()
    yield engine
    await engine.close()


# What an answer is


async def test_the_real_model_answers_a_question_with_sense(engine: OpenVINOEngine) -> None:
    assert text_of(await ask(engine, "What is the opposite of hot?")).startswith("The opposite of hot is cold.")


async def test_greedy_answers_are_the_same_again_and_in_a_batch_of_eight(engine: OpenVINOEngine) -> None:
    alone = [await ask(engine, question) for question in QUESTIONS]
    again = await ask(engine, QUESTIONS[6])
    together = await asyncio.gather(*(ask(engine, question) for question in QUESTIONS))
    assert text_of(again) == text_of(alone[6])
    assert [text_of(answer) for answer in together] == [text_of(answer) for answer in alone]
    assert [answer[-1] for answer in together] == [answer[-1] for answer in alone]
    assert len({text_of(answer) for answer in alone}) == len(QUESTIONS)


async def test_the_streamed_pieces_are_the_whole_decoded_at_once(engine: OpenVINOEngine, model: LoadedModel) -> None:
    chunks = await ask(engine, "Say hello in Japanese.")
    ids = model.encode([{"role": "user", "content": "Say hello in Japanese."}])
    batches = model.generate(ids, params())
    whole = model.decode([token async for batch in batches for token in batch.ids])
    assert text_of(chunks) == whole
    assert not whole.isascii()
    assert len(chunks) > 4
    assert all("\ufffd" not in chunk.text for chunk in chunks)


async def test_the_first_chunk_says_accepted_and_only_the_last_how_it_ended(engine: OpenVINOEngine) -> None:
    chunks = await ask(engine, "What is 2+2?")
    assert chunks[0].text == ""
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].finish_reason is not None


async def test_an_answer_that_the_model_ends_stops_before_max_tokens(
    engine: OpenVINOEngine, model: LoadedModel
) -> None:
    chunks = await ask(engine, "What is 2+2?", params(64))
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens < 64
    assert chunks[-1].usage.prompt_tokens == len(model.encode([{"role": "user", "content": "What is 2+2?"}]))
    assert "<|im_end|>" not in text_of(chunks)


async def test_who_ignores_the_end_gets_exactly_max_tokens_and_first_of_all_the_same(engine: OpenVINOEngine) -> None:
    ended = await ask(engine, "What is 2+2?", params(64))
    chunks = await ask(engine, "What is 2+2?", params(64, ignore_eos=True))
    assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("length", 64)  # type: ignore[union-attr]
    assert text_of(chunks).startswith(text_of(ended).rstrip())
    begun = await ask(engine, "What is 2+2?", params(20, ignore_eos=True, begin="It is"))
    assert begun[-1].usage.completion_tokens == 20  # type: ignore[union-attr]
    stopped = await ask(engine, "What is 2+2?", params(64, ignore_eos=True, stop=(text_of(ended)[-3:],)))
    assert stopped[-1].finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [1, 7])
async def test_max_tokens_ends_with_length_and_is_counted(engine: OpenVINOEngine, max_tokens: int) -> None:
    chunks = await ask(engine, LONG_STORY, params(max_tokens))
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == max_tokens


async def test_the_chat_template_is_applied_once_with_the_system_message(model: LoadedModel) -> None:
    conversation = [
        {"role": "system", "content": "You know sleep."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "What is REM?"},
    ]
    ids = model.encode(conversation)
    assert model._tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou know sleep.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nWhat is REM?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_the_system_message_reaches_the_model(engine: OpenVINOEngine) -> None:
    question = Message("user", "Who are you?")
    told = [Message("system", "You are a pirate."), question]
    answer = [chunk async for chunk in engine.stream(SLEEP, told, params())]
    assert any(word in text_of(answer).lower() for word in ("pirate", "captain", "ahoy", "sea"))
    assert "pirate" not in text_of(await ask(engine, "Who are you?"))


# The first token


async def test_the_first_chunk_tells_the_first_tokens_probability(engine: OpenVINOEngine) -> None:
    sure = await ask(engine, "What is the opposite of hot?", params(probability=True))
    unsure = await ask(engine, "Name any word at all.", params(probability=True))
    (first,), (guess,) = ([chunk for chunk in chunks if chunk.probability is not None] for chunks in (sure, unsure))
    assert first == next(chunk for chunk in sure if chunk.text)
    assert 0 < guess.probability < first.probability <= 1  # type: ignore[operator]


async def test_nobody_is_told_probabilities_unasked(engine: OpenVINOEngine) -> None:
    assert all(chunk.probability is None for chunk in await ask(engine, "What is 2+2?"))


async def test_an_answer_goes_on_from_its_given_beginning(engine: OpenVINOEngine) -> None:
    free = await ask(engine, "Name a colour.")
    begun = await ask(engine, "Name a colour.", params(begin="Bananas are"))
    assert text_of(begun).startswith("Bananas are ")
    assert not text_of(free).startswith("Bananas")
    assert begun[-1].usage is not None
    assert free[-1].usage is not None
    assert begun[-1].usage.prompt_tokens == free[-1].usage.prompt_tokens
    assert begun[-1].usage.completion_tokens <= 16


async def test_its_own_beginning_given_changes_nothing(engine: OpenVINOEngine) -> None:
    free = text_of(await ask(engine, "Who wrote Hamlet?"))
    first = free.split()[0]
    assert text_of(await ask(engine, "Who wrote Hamlet?", params(begin=first))) == free


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_given_beginning_counts_as_part_of_the_answer(engine: OpenVINOEngine, most: int) -> None:
    chunks = await ask(engine, "Name a colour.", params(most, begin="One, two, three"))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == most
    assert most == 1 or text_of(chunks).startswith("One")


async def test_a_stop_sequence_ends_a_given_beginning_too(engine: OpenVINOEngine) -> None:
    chunks = await ask(engine, "Name a colour.", params(begin="One, two, three", stop=(", three",)))
    assert text_of(chunks) == "One, two"
    assert chunks[-1].finish_reason == "stop"


# Characters


def streamed(model: LoadedModel, ids: list[int], step: int) -> list[str]:
    detokenizer = Detokenizer(model.decode)
    pieces = [detokenizer.feed(ids[at : at + step]) for at in range(0, len(ids), step)]
    return [*pieces, detokenizer.flush()]


def tokens_of(model: LoadedModel, text: str) -> list[int]:
    return model._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_no_character_is_split_or_lost(model: LoadedModel, step: int) -> None:
    pieces = streamed(model, tokens_of(model, MIXED_TEXT), step)
    assert "".join(pieces) == MIXED_TEXT
    assert "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 5


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=30).filter(lambda text: "\x00" not in text), step=st.integers(1, 4))
def test_any_text_comes_back_as_the_tokenizer_has_it(model: LoadedModel, text: str, step: int) -> None:
    ids = tokens_of(model, text) if text else []
    assert "".join(streamed(model, ids, step)) == model._tokenizer.decode(ids)


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30), step=st.integers(1, 3))
def test_any_tokens_come_back_as_when_decoded_at_once(model: LoadedModel, ids: list[int], step: int) -> None:
    """Also tokens that no text has: stray and unfinished bytes."""
    assert "".join(streamed(model, ids, step)) == model._tokenizer.decode(ids)


@pytest.mark.parametrize("errors", ["replace", "ignore"])
@given(text=st.text(max_size=20).filter(lambda text: "\ufffd" not in text), data=st.data())
def test_a_detokenizer_may_mark_or_drop_an_unfinished_character(errors: str, text: str, data: st.DataObject) -> None:
    content = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)))) | {0, len(content)})
    tokens = [content[start:end] for start, end in pairwise(cuts)]
    detokenizer = Detokenizer(lambda ids: b"".join(tokens[i] for i in ids).decode(errors=errors))
    pieces = [detokenizer.feed([i]) for i in range(len(tokens))]
    assert "".join([*pieces, detokenizer.flush()]) == text
    assert "\ufffd" not in "".join(pieces)


# Stop sequences


async def test_a_stop_sequence_is_never_shown_also_across_pieces(engine: OpenVINOEngine) -> None:
    question = "Why do we sleep?"
    pieces = [chunk.text for chunk in await ask(engine, question) if chunk.text]
    whole = "".join(pieces)
    stops = [left[-2:] + right[:3] for left, right in pairwise(pieces[2:9])]
    answers = await asyncio.gather(*(ask(engine, question, params(stop=(stop,))) for stop in stops))
    for stop, answer in zip(stops, answers, strict=True):
        assert text_of(answer) == whole[: whole.index(stop)]
        assert answer[-1].finish_reason == "stop"
        assert answer[-1].usage is not None
        assert answer[-1].usage.completion_tokens < 16
    await until(lambda: counters(engine)["running"] == 0)  # a stopped request does not go on


async def test_the_first_of_several_stop_sequences_counts_and_an_absent_one_does_not(engine: OpenVINOEngine) -> None:
    question = "What is the opposite of hot?"
    whole = text_of(await ask(engine, question))
    assert text_of(await ask(engine, question, params(stop=("cold", "opposite", "hot")))) == "The "
    held_back_to_the_end = whole[-2:] + "@"
    assert text_of(await ask(engine, question, params(stop=(held_back_to_the_end,)))) == whole


# Sampling


async def test_a_seed_makes_a_sampled_answer_repeat_and_another_changes_it(engine: OpenVINOEngine) -> None:
    sampled = [text_of(await ask(engine, LONG_STORY, params(temperature=1.0, seed=seed))) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


async def test_without_a_seed_sampled_answers_differ(engine: OpenVINOEngine) -> None:
    answers = await asyncio.gather(*(ask(engine, LONG_STORY, params(temperature=1.0)) for _ in range(3)))
    assert len({text_of(answer) for answer in answers}) > 1


# Quotes


async def test_who_quotes_is_answered_with_the_same_words_in_fewer_steps(engine: OpenVINOEngine) -> None:
    """Alone, at once, and beside one that has nothing to quote; pieces stay whole however many tokens come at once."""
    quoting = OpenVINOEngine(engine._sources, options(lookup_tokens=7))
    reader = replace(SLEEP, knowledge=Path("texts"))
    texts = [MIXED_TEXT, "The oldest town of the valley is Ålesund, on three islands; it burnt down in 1904."]
    asked = [f"{text}\n\nRepeat the text above word for word." for text in texts]
    expected = [text_of(await ask(engine, each, params(60))) for each in (*asked, QUESTIONS[3])]
    alone = [await ask(quoting, each, params(60), expert=reader) for each in asked]
    together = await asyncio.gather(
        *(ask(quoting, each, params(60), expert=reader) for each in asked), ask(quoting, QUESTIONS[3], params(60))
    )
    assert [text_of(answer) for answer in alone] == expected[:2]
    assert [text_of(answer) for answer in together] == expected
    assert all("\ufffd" not in chunk.text for answer in (*alone, *together) for chunk in answer)
    for answer in alone:
        assert len(answer) < answer[-1].usage.completion_tokens / 2  # type: ignore[union-attr]
    await quoting.close()


# Slots


async def test_leaving_a_stream_frees_its_slot_while_the_others_go_on(engine: OpenVINOEngine) -> None:
    alone = text_of(await ask(engine, QUESTIONS[6]))
    before = counters(engine)
    async with aclosing(engine.stream(SLEEP, [Message("user", LONG_STORY)], params(2000))) as leaving:
        for _ in range(4):
            await anext(leaving)
        staying = asyncio.create_task(ask(engine, QUESTIONS[6]))
        await anext(leaving)
    await until(lambda: counters(engine)["cancelled"] == before["cancelled"] + 1)
    assert text_of(await staying) == alone
    assert counters(engine)["running"] == 0
    generated = counters(engine)["generated_tokens"]
    await asyncio.sleep(0.1)
    assert counters(engine)["generated_tokens"] == generated


async def test_cancelling_who_waits_for_the_first_word_frees_the_slot(engine: OpenVINOEngine) -> None:
    before = counters(engine)["cancelled"]
    waiting = asyncio.create_task(ask(engine, "word " * 2000 + LONG_STORY))
    await until(lambda: counters(engine)["running"] == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: counters(engine)["running"] == 0)
    assert counters(engine)["cancelled"] == before + 1


async def test_a_stream_that_nobody_reads_holds_no_slot(engine: OpenVINOEngine) -> None:
    async with aclosing(engine.stream(SLEEP, [Message("user", LONG_STORY)], params(2000))) as stream:
        await anext(stream)  # accepted
    assert counters(engine)["running"] == 0


def test_two_event_loops_are_served_at_once(engine: OpenVINOEngine) -> None:
    expected = [text_of(asyncio.run(ask(engine, question))) for question in QUESTIONS[:2]]
    answers: dict[int, list[str]] = {}
    both_are_there = threading.Barrier(2)

    async def ask_twice(number: int) -> list[str]:
        both_are_there.wait()
        return [text_of(await ask(engine, QUESTIONS[number])) for _ in range(2)]

    def in_a_loop_of_its_own(number: int) -> None:
        answers[number] = asyncio.run(ask_twice(number))

    threads = [threading.Thread(target=in_a_loop_of_its_own, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert answers == {number: [text] * 2 for number, text in enumerate(expected)}


# What is refused


async def test_a_prompt_longer_than_the_context_is_refused_before_any_chunk(engine: OpenVINOEngine) -> None:
    before = counters(engine)
    with pytest.raises(ContextLengthError, match="8192 tokens") as caught:
        await anext(engine.stream(SLEEP, [Message("user", "word " * 9000)], params()))
    assert caught.value.param == "messages"
    assert counters(engine) == before


async def test_a_prompt_that_the_tokenizer_would_cut_is_refused(random_models: RandomModels) -> None:
    """A model may have a longer context than its tokenizer reads: cutting off the instructions is no answer."""
    engine = random_models.engine(random_models.source("roomy", context_tokens=32_768))
    with pytest.raises(ContextLengthError):
        await ask(engine, "x " * 5000)
    await engine.close()


async def test_an_answer_ends_where_the_context_does(random_engine: OpenVINOEngine) -> None:
    last = (await ask(random_engine, "x " * 110, params(100)))[-1]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.total_tokens == 256


async def test_an_expert_with_an_unknown_base_model_is_refused(random_engine: OpenVINOEngine) -> None:
    unknown = Expert("sleep", "Sleep", "", "", base_model="absent")
    with pytest.raises(NotReadyError, match="'absent' of 'sleep' is not in"):
        await ask(random_engine, "Hello", expert=unknown)
    with pytest.raises(NotReadyError, match="'absent' of 'sleep' is not in"):
        random_engine.served(unknown)


# Loading


async def test_a_model_that_fails_its_canary_is_refused_and_says_why(random_models: RandomModels) -> None:
    source = random_models.source(canary=Canary("What is 2+2?", "It is 4."))
    engine = random_models.engine(source)
    for _ in range(2):  # not the first time only
        with pytest.raises(NotReadyError, match=r"asked 'What is 2\+2\?' it answered .* instead of 'It is 4\.'"):
            await ask(engine, "Hello")
    assert engine.status()["models"] == {}
    await engine.close()


async def test_a_model_that_passes_its_canary_answers(random_models: RandomModels) -> None:
    engine = random_models.engine(random_models.source(canary=Canary("What is 2+2?", "")))
    await engine.warm_up(SLEEP)
    assert list(engine.status()["models"]) == ["random"]  # type: ignore[call-overload]
    await engine.close()


async def test_concurrent_first_requests_load_the_model_once(random_models: RandomModels) -> None:
    engine = random_models.engine()
    answers = await asyncio.gather(engine.warm_up(SLEEP), *(ask(engine, "Hello") for _ in range(6)))
    assert random_models.prepared == ["random"]
    assert len({text_of(answer) for answer in answers[1:]}) == 1
    await engine.close()


async def test_weights_that_cannot_be_brought_are_tried_again_by_the_next_request(random_models: RandomModels) -> None:
    working = random_models.source()
    attempts = []

    def prepare(adapter: Adapter | None) -> PreparedModel:
        attempts.append("attempt")
        if len(attempts) == 1:
            raise WeightsError("the registry is down")
        return working.prepare(adapter)

    engine = random_models.engine(ModelSource(prepare, None))
    with pytest.raises(NotReadyError, match="random is refused: the registry is down"):
        await ask(engine, "Hello")
    assert (await ask(engine, "Hello", params(2)))[-1].finish_reason == "length"
    await engine.close()


async def test_a_folder_that_is_no_model_is_refused(random_models: RandomModels, tmp_path: Path) -> None:
    prepared = prepare_llama(tmp_path)
    (prepared.folder / "openvino_model.xml").write_text("no model")
    engine = random_models.engine(ModelSource(lambda _: prepared, None))
    with pytest.raises(NotReadyError, match="cannot be loaded"):
        await ask(engine, "Hello")
    await engine.close()


async def test_models_beyond_the_bound_are_unloaded_least_recently_used_first(random_models: RandomModels) -> None:
    sources = {name: random_models.source(name, seed=seed) for seed, name in enumerate(("random", "second"))}
    engine = OpenVINOEngine(sources, options(default_model="random", max_model_bytes=1))
    other = Expert("cars", "Cars", "", "", base_model="second")
    first = await ask(engine, "Hello")
    await ask(engine, "Hello", expert=other)
    assert list(engine.status()["models"]) == ["second"]  # type: ignore[call-overload]
    assert [engine.holds(each) for each in (SLEEP, other)] == [False, True]
    assert text_of(await ask(engine, "Hello")) == text_of(first)
    assert list(engine.status()["models"]) == ["random"]  # type: ignore[call-overload]
    assert random_models.prepared == ["random", "second", "random"]
    await engine.close()


# The process that a model runs in


@pytest.fixture
async def others(random_models: RandomModels) -> set[int]:  # noqa: ARG001 - made before the engine is
    return children_of(os.getpid())


async def only_child(others: set[int]) -> int:
    await until(lambda: len(children_of(os.getpid()) - others) == 1)
    (pid,) = children_of(os.getpid()) - others
    return pid


async def test_the_event_loop_goes_on_while_the_model_computes(engine: OpenVINOEngine) -> None:
    """In one process with the model it gets a turn or two a step."""
    prompt_tokens, slice_tokens, turns = 4000, 256, 0
    answering = asyncio.create_task(ask(engine, "word " * prompt_tokens, params(1)))
    await until(lambda: counters(engine)["running"] == 1)
    while not answering.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 8 * prompt_tokens / slice_tokens


async def test_a_model_whose_process_dies_fails_what_runs_and_is_loaded_anew(
    random_models: RandomModels, others: set[int]
) -> None:
    engine = random_models.engine(random_models.source("roomy", context_tokens=32_768))
    running = [engine.stream(SLEEP, [Message("user", "Hello")], params(8000)) for _ in range(2)]
    for stream in running:
        for _ in range(3):
            await anext(stream)
    os.kill(await only_child(others), signal.SIGKILL)
    for stream in running:
        with pytest.raises(EngineError, match="process ended \\(killed; perhaps"):
            _ = [chunk async for chunk in stream]
    assert engine.status()["models"] == {}
    assert (await ask(engine, "Hello", params(2)))[-1].finish_reason == "length"
    assert random_models.prepared == ["roomy"] * 2
    await engine.close()
    assert children_of(os.getpid()) == others


async def test_a_process_that_dies_while_it_loads_is_not_ready(random_models: RandomModels, others: set[int]) -> None:
    engine = random_models.engine()
    loading = asyncio.create_task(engine.warm_up(SLEEP))
    os.kill(await only_child(others), signal.SIGKILL)
    with pytest.raises(NotReadyError, match="cannot be loaded: its process ended \\(killed"):
        await loading
    await engine.warm_up(SLEEP)
    await engine.close()


@pytest.mark.parametrize("asked_to_end", [signal.SIGINT, signal.SIGTERM])
async def test_what_a_terminal_sends_to_all_processes_ends_no_answer(
    random_engine: OpenVINOEngine, others: set[int], asked_to_end: signal.Signals
) -> None:
    await random_engine.warm_up(SLEEP)
    os.kill(await only_child(others), asked_to_end)
    assert (await ask(random_engine, "Hello", params(100)))[-1].finish_reason == "length"


SERVER = """
import asyncio, sys
from pathlib import Path
from tiny_gguf import prepare_llama
from expert_router.engines.loaded_model import OpenVINOOptions
from expert_router.engines.openvino import ModelSource, OpenVINOEngine
from expert_router.types import Expert, GenerationParams, Message

async def main():
    source = ModelSource(lambda _: prepare_llama(Path(sys.argv[1]), name="roomy", context_tokens=32_768), None)
    engine = OpenVINOEngine({"roomy": source}, OpenVINOOptions("roomy", 2, 2**33, 2**30, 4, reproducible=True))
    async for chunk in engine.stream(Expert("a", "A", "", ""), [Message("user", "Hello")], GenerationParams(8000)):
        if chunk.text:
            print("answering", flush=True)

asyncio.run(main())
"""


def test_no_process_is_left_behind_by_a_server_that_is_killed(random_model: Path) -> None:
    """A script that is run from nowhere, as a caller's may be: it is not imported again."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SERVER, str(random_model)]
    with subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "answering\n"
        (pid,) = children_of(server.pid)
        server.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


# The end


async def test_closing_the_engine_ends_what_runs_and_refuses_what_comes(random_models: RandomModels) -> None:
    engine = random_models.engine(random_models.source("roomy", context_tokens=32_768))
    stream = engine.stream(SLEEP, [Message("user", "Hello")], params(8000))
    for _ in range(3):
        await anext(stream)
    await engine.close()
    with pytest.raises(EngineError, match="shut down"):
        async with asyncio.timeout(5):
            _ = [chunk async for chunk in stream]
    with pytest.raises(EngineError, match="shutting down"):
        await ask(engine, "Hello")
    await engine.close()


def test_the_byte_tokens_of_the_random_model_are_all_different() -> None:
    assert len(set(byte_tokens())) == 256
