"""The contract with the official ``openai`` client: what it sends is understood, what it reads is what it expects."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from support import BOTH_QUESTION, CARS, CARS_QUESTION, OTHER_QUESTION, SLEEP, SLEEP_QUESTION, eventually, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from support import Server

SLEEP_ANSWER = "[Sleep science] You asked: What is REM sleep?"


@contextmanager
def connect(server: Server, max_retries: int = 0) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=max_retries, timeout=10.0) as client:
        yield client


@asynccontextmanager
async def connect_async(server: Server, max_retries: int = 0) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=max_retries, timeout=10.0
    ) as client:
        yield client


def asks(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


class Sync:
    """Asks through ``OpenAI``."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def whole(self, question: str = SLEEP_QUESTION, **options: Any) -> ChatCompletion:
        with connect(self._server) as client:
            create = client.chat.completions.create
            return await asyncio.to_thread(create, **{"model": "auto", "messages": asks(question), **options})

    async def chunks(self, question: str = SLEEP_QUESTION, **options: Any) -> list[ChatCompletionChunk]:
        def read() -> list[ChatCompletionChunk]:
            body = {"model": "auto", "messages": asks(question), **options}
            with connect(self._server) as client, client.chat.completions.create(**body, stream=True) as stream:
                return list(stream)

        return await asyncio.to_thread(read)


class Async:
    """Asks through ``AsyncOpenAI``."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def whole(self, question: str = SLEEP_QUESTION, **options: Any) -> ChatCompletion:
        async with connect_async(self._server) as client:
            return await client.chat.completions.create(**{"model": "auto", "messages": asks(question), **options})

    async def chunks(self, question: str = SLEEP_QUESTION, **options: Any) -> list[ChatCompletionChunk]:
        body = {"model": "auto", "messages": asks(question), **options}
        async with (
            connect_async(self._server) as client,
            await client.chat.completions.create(**body, stream=True) as stream,
        ):
            return [chunk async for chunk in stream]


Caller = Sync | Async


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


@pytest.fixture(params=[Sync, Async])
def caller(request: pytest.FixtureRequest, server: Server) -> Caller:
    made: Caller = request.param(server)
    return made


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def about(answer: ChatCompletion | ChatCompletionChunk) -> Any:
    return (answer.model_extra or {}).get("expert_router")


def finish_reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]


async def test_auto_lets_the_router_choose(caller: Caller) -> None:
    completion = await caller.whole(CARS_QUESTION, model="auto")
    assert (completion.object, completion.model) == ("chat.completion", "auto")
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content == f"[{CARS.title}] You asked: {CARS_QUESTION}"
    assert completion.choices[0].finish_reason == "stop"
    routing = about(completion)
    assert routing["experts"] == ["cars"]
    assert routing["titles"] == {"cars": CARS.title}
    decision = routing["decision"]
    assert (decision["kind"], decision["experts"], decision["router"]) == ("single", ["cars"], "lexical")
    assert decision["runner_up"] in {"sleep", "general"}
    assert decision["scores"].keys() == {"sleep", "cars", "none"}
    assert decision["scores"]["cars"] > 0.9 > decision["scores"]["none"]
    assert CARS.title in decision["reason"]
    assert 0 <= routing["timings"]["route_s"] <= routing["timings"]["first_token_s"] <= routing["timings"]["total_s"]


@pytest.mark.parametrize("expert", [SLEEP, CARS])
async def test_an_experts_name_forces_it_whatever_the_question(caller: Caller, expert: Any) -> None:
    completion = await caller.whole(OTHER_QUESTION, model=expert.name)
    assert completion.model == expert.name
    assert completion.choices[0].message.content == f"[{expert.title}] You asked: {OTHER_QUESTION}"
    decision = about(completion)["decision"]
    assert (decision["kind"], decision["experts"], decision["scores"]) == ("forced", [expert.name], None)


async def test_general_is_the_bare_base_model(caller: Caller) -> None:
    completion = await caller.whole(SLEEP_QUESTION, model="general")
    assert about(completion)["experts"] == ["general"]
    assert about(completion)["decision"]["kind"] == "forced"
    assert completion.usage
    assert completion.usage.prompt_tokens == len(SLEEP_QUESTION.split())  # no instructions in front


async def test_a_question_that_no_expert_covers_goes_to_the_base_model_and_says_so(caller: Caller) -> None:
    first, *_ = chunks = await caller.chunks(OTHER_QUESTION)
    assert text_of(chunks).endswith(OTHER_QUESTION)
    assert (about(first)["decision"]["kind"], about(first)["experts"]) == ("general", ["general"])


async def test_who_answers_and_why_is_in_the_first_chunk_before_any_text(caller: Caller) -> None:
    chunks = await caller.chunks()
    first = chunks[0]
    assert (first.object, first.model) == ("chat.completion.chunk", "auto")
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert about(first)["experts"] == ["sleep"]
    assert about(first)["titles"] == {"sleep": SLEEP.title}
    keys = {"kind", "experts", "scores", "runner_up", "reason", "router", "prediction_set", "choices"}
    assert about(first)["decision"].keys() == keys
    assert about(first)["decision"]["kind"] == "single"
    assert {chunk.id for chunk in chunks} == {first.id}


async def test_a_stream_says_the_same_as_a_whole_answer(caller: Caller) -> None:
    chunks, completion = await caller.chunks(), await caller.whole()
    assert text_of(chunks) == completion.choices[0].message.content == SLEEP_ANSWER
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == len(SLEEP_ANSWER.split())
    assert finish_reasons(chunks) == ["stop"]
    assert about(chunks[0])["decision"] == about(completion)["decision"]
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    assert about(last)["timings"].keys() == {"route_s", "queue_s", "retrieve_s", "first_token_s", "total_s"}


async def test_usage_is_streamed_only_when_asked_for_in_a_last_chunk_without_choices(caller: Caller) -> None:
    whole = (await caller.whole()).usage
    assert whole
    assert whole.completion_tokens == len(SLEEP_ANSWER.split())
    assert whole.total_tokens == whole.prompt_tokens + whole.completion_tokens
    assert [chunk.usage for chunk in await caller.chunks() if chunk.usage] == []
    *before, last = await caller.chunks(stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage
    assert last.usage.model_dump(exclude_none=True) == whole.model_dump(exclude_none=True)
    assert all(chunk.choices and chunk.usage is None for chunk in before)
    assert [chunk.usage for chunk in await caller.chunks(stream_options={"include_usage": False}) if chunk.usage] == []


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"max_completion_tokens": 3, "max_tokens": 5},  # the older name yields
        {"max_completion_tokens": 3, "max_tokens": 1},
    ],
)
async def test_both_names_of_the_limit_cut_the_answer_and_say_length(caller: Caller, limits: dict[str, int]) -> None:
    completion = await caller.whole(**limits)
    assert completion.choices[0].message.content == "[Sleep science] You"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage
    assert completion.usage.completion_tokens == 3
    chunks = await caller.chunks(**limits)
    assert text_of(chunks) == "[Sleep science] You"
    assert finish_reasons(chunks) == ["length"]


@pytest.mark.parametrize("stop", ["asked", ["REM", "asked"]])
async def test_a_stop_sequence_ends_the_answer_and_is_not_shown(caller: Caller, stop: str | list[str]) -> None:
    completion = await caller.whole(stop=stop)
    assert completion.choices[0].message.content == "[Sleep science] You "
    assert completion.choices[0].finish_reason == "stop"
    chunks = await caller.chunks(stop=stop)
    assert (text_of(chunks), finish_reasons(chunks)) == ("[Sleep science] You ", ["stop"])


async def test_sampling_parameters_are_taken_and_the_same_seed_gives_the_same_answer(caller: Caller) -> None:
    sampling = {"seed": 7, "temperature": 0.8, "top_p": 0.9}
    first, second = await caller.whole(**sampling), await caller.whole(**sampling)
    assert first.choices[0].message.content == second.choices[0].message.content == SLEEP_ANSWER
    assert first.id != second.id


async def test_parameters_at_openais_defaults_change_nothing(caller: Caller) -> None:
    completion = await caller.whole(
        n=1, presence_penalty=0, frequency_penalty=0, logprobs=False, response_format={"type": "text"}, user="someone"
    )
    assert completion.choices[0].message.content == SLEEP_ANSWER


async def test_a_conversation_of_every_role_and_of_text_parts_is_understood(caller: Caller) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "REM sleep?"}]},
    ]
    completion = await caller.whole(messages=messages)
    assert completion.choices[0].message.content == SLEEP_ANSWER
    assert completion.usage
    assert completion.usage.prompt_tokens == 3 + 2 + 2 + 1 + 1 + 4  # the expert's own instructions first


async def test_several_experts_answer_in_sections_that_the_stream_marks(caller: Caller) -> None:
    chunks = await caller.chunks(BOTH_QUESTION)
    assert about(chunks[0])["decision"]["kind"] == "several"
    assert about(chunks[0])["experts"] == ["cars", "sleep"]
    assert about(chunks[0])["titles"] == {"cars": CARS.title, "sleep": SLEEP.title}
    sections = {
        about(chunk)["section"]: chunk.choices[0].delta.content
        for chunk in chunks
        if chunk.choices and "section" in (about(chunk) or {})
    }
    assert sections == {"cars": "**Car history**\n\n", "sleep": "\n\n**Sleep science**\n\n"}
    assert finish_reasons(chunks) == ["stop"]
    completion = await caller.whole(BOTH_QUESTION)
    assert completion.choices[0].message.content == text_of(chunks)
    assert about(completion)["experts"] == ["cars", "sleep"]


async def test_headers_name_who_answers_and_the_request(server: Server) -> None:
    async with connect_async(server) as client:
        whole = await client.chat.completions.with_raw_response.create(model="auto", messages=asks(BOTH_QUESTION))
        streamed = await client.chat.completions.with_raw_response.create(
            model="auto", messages=asks(BOTH_QUESTION), stream=True
        )
        for response in (whole, streamed):
            assert response.headers["x-expert-router-experts"] == "cars,sleep"
            assert response.headers["x-expert-router-kind"] == "several"
            assert response.headers["x-expert-router-router"] == "lexical"
            assert response.headers["x-request-id"]
        completion = await client.chat.completions.create(model="auto", messages=asks(SLEEP_QUESTION))
        assert completion._request_id
        async with streamed.parse() as stream:
            assert [chunk async for chunk in stream]


async def test_the_models_are_auto_each_expert_and_general(server: Server) -> None:
    async with connect_async(server) as client:
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == ["auto", "sleep", "cars", "general"]
        assert {model.owned_by for model in listed} == {"expert-router"}
        for model in listed:
            assert await client.models.retrieve(model.id) == model
        sleep = (listed[1].model_extra or {})["expert_router"]
        assert sleep == {"title": SLEEP.title, "description": SLEEP.description, "examples": list(SLEEP.examples)}


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(server: Server, caller: Caller) -> None:
    for asked in (caller.whole, caller.chunks):
        with pytest.raises(openai.NotFoundError) as caught:
            await asked(model="gpt-4o")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "Known: auto, sleep, cars, general" in caught.value.message
        assert caught.value.request_id
    with connect(server) as client, pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_a_conversation_beyond_the_context_is_a_bad_request_with_openais_code(kind: type[Caller]) -> None:
    with serve(EchoEngine(EchoScript(context_length=6))) as server:
        caller = kind(server)
        for asked in (caller.whole, caller.chunks):
            with pytest.raises(openai.BadRequestError) as caught:
                await asked()
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
            assert caught.value.type == "invalid_request_error"
            assert "Shorten" in caught.value.message


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_overload_is_a_rate_limit_error_with_retry_after(kind: type[Caller]) -> None:
    with serve(EchoEngine(EchoScript(max_slots=0))) as server:
        caller = kind(server)
        for asked in (caller.whole, caller.chunks):
            with pytest.raises(openai.RateLimitError) as caught:
                await asked()
            assert (caught.value.code, caught.value.type) == ("overloaded", "overloaded_error")
            assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_the_clients_own_retry_gets_through_once_there_is_room() -> None:
    engine = EchoEngine(by_expert={"sleep": EchoScript(hang_after_tokens=1)})
    with serve(engine, max_running=1, max_queue=0, queue_timeout_s=1) as server:
        async with connect_async(server, max_retries=2) as client:
            holding = await client.chat.completions.create(model="sleep", messages=asks(SLEEP_QUESTION), stream=True)
            create = client.chat.completions.with_raw_response.create
            waiting = asyncio.create_task(create(model="cars", messages=asks(CARS_QUESTION)))
            await asyncio.sleep(0.3)  # by now it was refused, and waits for what Retry-After said
            await holding.close()
            response = await waiting
            assert response.retries_taken == 1
            assert response.parse().choices[0].finish_reason == "stop"


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_a_failing_engine_is_a_server_error(kind: type[Caller]) -> None:
    with serve(EchoEngine(EchoScript(fail_before=True))) as server:
        caller = kind(server)
        for asked in (caller.whole, caller.chunks):
            with pytest.raises(openai.InternalServerError) as caught:
                await asked()
            assert (caught.value.status_code, caught.value.code) == (502, "engine_failed")


async def test_a_failure_midway_is_raised_after_the_text_that_came() -> None:
    with serve(EchoEngine(EchoScript(fail_after_tokens=2))) as server:
        with connect(server) as client:
            stream = client.chat.completions.create(model="sleep", messages=asks(SLEEP_QUESTION), stream=True)
            received = [next(stream) for _ in range(3)]
            assert text_of(received) == "[Sleep science]"
            with pytest.raises(openai.APIError, match="after 2 words") as caught:
                next(stream)
            assert caught.value.code == "engine_failed"
        async with connect_async(server) as client:
            with pytest.raises(openai.InternalServerError):  # a whole answer is whole or an error
                await client.chat.completions.create(model="sleep", messages=asks(SLEEP_QUESTION))


async def test_closing_the_stream_frees_the_engines_slot() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=2))) as server:
        with connect(server) as client:
            stream = client.chat.completions.create(model="sleep", messages=asks(SLEEP_QUESTION), stream=True)
            assert text_of([next(stream) for _ in range(3)]) == "[Sleep science]"
            assert server.counts() == {"running": 1}
            stream.close()
        eventually(lambda: server.counts() == {"cancelled": 1})


async def test_a_client_whose_patience_ends_frees_the_engines_slot() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=0))) as server:
        async with connect_async(server) as client:
            await client.models.list()  # the server has started: all the patience goes into the answer
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="sleep", messages=asks(SLEEP_QUESTION), timeout=0.5)
        eventually(lambda: server.counts() == {"cancelled": 1})


async def test_one_server_can_be_the_engine_of_another(server: Server) -> None:
    engine = OpenAIHTTPEngine(f"{server.url}/v1", None, served_model_names("cars"))
    with serve(engine) as front, connect(front) as client:
        chunks = list(
            client.chat.completions.create(
                model="auto",
                messages=asks(SLEEP_QUESTION),
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=3,
            )
        )
        assert about(chunks[0])["experts"] == ["sleep"]
        assert text_of(chunks) == "[Car history] You"  # the server behind forces its own expert
        assert finish_reasons(chunks) == ["length"]
        assert chunks[-1].usage
        assert chunks[-1].usage.completion_tokens == 3
