from __future__ import annotations

import asyncio
import json
import socket
import traceback
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from upstream import WHOLE_ANSWER, Upstream, UpstreamServer, delta, serve, serve_bytes, usage

from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    EngineTimeoutError,
    NotReadyError,
    OverloadedError,
)
from expert_router.types import GENERAL, Adapter, Chunk, Expert, GenerationParams, Message, Served, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEY = "sk-very-secret-0123456789"
SLEEP = Expert("sleep", "Sleep science", "", "")
ADAPTER = Adapter(Path("experts/sleep/adapters/base"), "0123456789abcdef" * 4)
TUNED = Expert("sleep", "Sleep science", "", "", adapters={"base": ADAPTER})
QUESTION = (Message("system", "You know sleep."), Message("user", "What is REM sleep?"))
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[UpstreamServer]:
    with serve() as running:
        yield running


@pytest.fixture
def upstream(server: UpstreamServer) -> Upstream:
    return server.fresh()


@asynccontextmanager
async def engine_at(base_url: str, read_timeout_s: float = 5.0) -> AsyncIterator[OpenAIHTTPEngine]:
    engine = OpenAIHTTPEngine(base_url, KEY, served_model_names("base"), 2.0, read_timeout_s)
    try:
        yield engine
    finally:
        await engine.close()


async def ask(engine: OpenAIHTTPEngine, expert: Expert = SLEEP, params: GenerationParams | None = None) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(expert, QUESTION, params or GenerationParams())]


def counts(engine: OpenAIHTTPEngine) -> tuple[object, ...]:
    status = engine.status()
    return tuple(status[key] for key in ("running", "finished", "cancelled", "failed"))


def event_stream(*events: str) -> bytes:
    return SSE_HEAD + "".join(f"data: {event}\n\n" for event in events).encode()


async def test_an_answer_streams_in_pieces_and_ends_with_reason_and_the_servers_count(upstream: Upstream) -> None:
    async with engine_at(upstream.base_url) as engine:
        chunks = await ask(engine)
        assert chunks == [Chunk("REM "), Chunk("sleep."), Chunk("", "stop", Usage(11, 4))]
        assert counts(engine) == (0, 1, 0, 0)


async def test_the_request_is_openais(upstream: Upstream) -> None:
    params = GenerationParams(max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("END", "\n\n"), ignore_eos=True)
    async with engine_at(upstream.base_url) as engine:
        await ask(engine, params=params)
        await ask(engine)
    first, second = upstream.seen
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.body == {
        "model": "base",
        "messages": [
            {"role": "system", "content": "You know sleep."},
            {"role": "user", "content": "What is REM sleep?"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END", "\n\n"],
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "seed" not in second.body
    assert "stop" not in second.body
    assert "ignore_eos" not in second.body


async def test_a_finished_answers_connection_is_used_again(upstream: Upstream) -> None:
    async with engine_at(upstream.base_url) as engine:
        for _ in range(3):
            await ask(engine)
    assert len({seen.client_port for seen in upstream.seen}) == 1


async def test_no_key_means_no_authorization_header(upstream: Upstream) -> None:
    engine = OpenAIHTTPEngine(upstream.base_url, None, served_model_names("base"))
    await ask(engine)
    await engine.close()
    assert "authorization" not in upstream.seen[0].headers


def test_a_model_is_named_after_its_adapter_else_after_its_base() -> None:
    name_of = served_model_names("base")
    assert name_of(TUNED) == "sleep@0123456789ab"
    assert name_of(SLEEP) == "base"
    assert name_of(Expert("cars", "Cars", "", "", base_model="mistral")) == "mistral"
    assert name_of(Expert(GENERAL, "General", "", "")) == "base"


def test_the_adapter_is_the_one_for_the_base_in_use() -> None:
    other = Adapter(Path("experts/sleep/adapters/mistral"), "fedcba9876543210" * 4)
    both = {"base": ADAPTER, "mistral": other}
    assert served_model_names("base")(replace(TUNED, adapters=both)) == "sleep@0123456789ab"
    assert served_model_names("mistral")(replace(TUNED, adapters=both)) == "sleep@fedcba987654"
    assert served_model_names("base")(replace(TUNED, adapters=both, base_model="mistral")) == "sleep@fedcba987654"


async def test_what_is_served_is_the_base_and_the_adapters_whole_hash(upstream: Upstream) -> None:
    async with engine_at(upstream.base_url) as engine:
        assert engine.served(TUNED) == Served("base", ADAPTER.sha256)
        assert engine.served(SLEEP) == Served("base", None)
        await ask(engine, TUNED)
    assert upstream.seen[0].body["model"] == "sleep@0123456789ab"


async def test_an_expert_without_an_adapter_for_the_base_is_refused_before_the_server_is_asked(
    upstream: Upstream,
) -> None:
    stray = replace(TUNED, adapters={"mistral": ADAPTER})
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(NotReadyError, match="'sleep' has adapters for mistral, but none for the base model base"):
            engine.served(stray)
        with pytest.raises(NotReadyError, match="none for the base model base"):
            await ask(engine, stray)
        with pytest.raises(NotReadyError, match="none for the base model base"):
            await engine.warm_up(stray)
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ((delta("a"), delta("b", "length"), "[DONE]"), Chunk("", "length", Usage(0, 2))),
        ((delta("a"), delta(finish_reason="tool_calls"), "[DONE]"), Chunk("", "stop", Usage(0, 1))),
        ((delta("a"), "[DONE]"), Chunk("", "stop", Usage(0, 1))),  # the server says itself that it is done
        ((delta("a"), delta(finish_reason="stop")), Chunk("", "stop", Usage(0, 1))),  # no [DONE]
        ((delta(finish_reason="stop"), "[DONE]"), Chunk("", "stop", Usage(0, 0))),  # nothing to say is an answer
        ((delta("a", usage={"prompt_tokens": 5, "completion_tokens": 1}), usage(5, 2), delta(finish_reason="stop")),
         Chunk("", "stop", Usage(5, 2))),
    ],
)  # fmt: skip
async def test_the_last_chunk(upstream: Upstream, events: tuple[str, ...], last: Chunk) -> None:
    upstream.events = events
    async with engine_at(upstream.base_url) as engine:
        assert (await ask(engine))[-1] == last


async def test_comments_blank_events_and_split_characters_are_understood() -> None:
    body = b": keep-alive\n\n" + event_stream(delta("Käse é"), delta(finish_reason="stop"), "[DONE]")[len(SSE_HEAD) :]
    body = b"id: 7\r\n\r\n" + body.replace(b"\\u00e4", "ä".encode())
    cut = body.index("ä".encode()) + 1
    async with serve_bytes(SSE_HEAD, body[:cut], body[cut:]) as base_url, engine_at(base_url) as engine:
        assert await ask(engine) == [Chunk("Käse é"), Chunk("", "stop", Usage(0, 1))]


async def test_a_server_that_stays_open_after_done_is_not_waited_for() -> None:
    async with (
        serve_bytes(event_stream(*WHOLE_ANSWER), then_hang=True) as base_url,
        engine_at(base_url, read_timeout_s=5) as engine,
        asyncio.timeout(1),
    ):
        assert (await ask(engine))[-1].usage == Usage(11, 4)


@pytest.mark.parametrize("taken", [1, 2])
async def test_closing_the_stream_closes_the_connection_at_once(upstream: Upstream, taken: int) -> None:
    upstream.hang_after = 4
    async with engine_at(upstream.base_url) as engine:
        async with aclosing(engine.stream(SLEEP, QUESTION, GenerationParams())) as stream:
            for _ in range(taken):
                await anext(stream)
            assert counts(engine) == (1, 0, 0, 0)
            assert not upstream.disconnected.is_set()
        assert counts(engine) == (0, 0, 1, 0)
        assert await asyncio.to_thread(upstream.disconnected.wait, 2.0)


async def test_cancelling_the_waiting_task_closes_the_connection_at_once(upstream: Upstream) -> None:
    upstream.hang_after = 0
    async with engine_at(upstream.base_url) as engine:
        task = asyncio.create_task(ask(engine))
        assert await asyncio.to_thread(upstream.asked.wait, 2.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts(engine) == (0, 0, 1, 0)
        assert await asyncio.to_thread(upstream.disconnected.wait, 2.0)


async def test_leaving_after_the_last_chunk_is_not_a_cancellation(upstream: Upstream) -> None:
    async with (
        engine_at(upstream.base_url) as engine,
        aclosing(engine.stream(SLEEP, QUESTION, GenerationParams())) as stream,
    ):
        async for chunk in stream:
            if chunk.finish_reason:
                assert counts(engine) == (0, 1, 0, 0)
                break
    assert counts(engine) == (0, 1, 0, 0)


async def test_the_client_does_not_queue(upstream: Upstream) -> None:
    upstream.hang_after = 2
    async with engine_at(upstream.base_url) as engine:
        streams = [engine.stream(SLEEP, QUESTION, GenerationParams()) for _ in range(120)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert counts(engine) == (120, 0, 0, 0)
        await asyncio.gather(*(stream.aclose() for stream in streams))
        assert counts(engine) == (0, 0, 120, 0)


async def test_nobody_listens_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    async with engine_at(base_url) as engine:
        with pytest.raises(EngineError, match=rf"{base_url} cannot be reached.*engine\.base_url"):
            await ask(engine)
        assert counts(engine) == (0, 0, 0, 1)


async def test_a_server_that_does_not_accept_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(address)
            engine = OpenAIHTTPEngine(
                f"http://127.0.0.1:{address[1]}/v1", KEY, served_model_names("base"), connect_timeout_s=0.2
            )
            with pytest.raises(EngineTimeoutError, match=r"did not accept a connection within 0\.2 s"):
                await ask(engine)
            await engine.close()
        finally:
            for client in waiting:
                client.close()


@pytest.mark.parametrize("hang_after", [0, 2])
async def test_silence_is_a_timeout(upstream: Upstream, hang_after: int) -> None:
    upstream.hang_after = hang_after
    async with engine_at(upstream.base_url, read_timeout_s=0.2) as engine:
        with pytest.raises(EngineTimeoutError, match=r"silent for 0\.2 s.*engine\.read_timeout_s"):
            await ask(engine)
        assert counts(engine) == (0, 0, 0, 1)
        assert await asyncio.to_thread(upstream.disconnected.wait, 2.0)


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded"}},
        {"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's "
                   "maximum context length is 4096 tokens and your request has 2778 input tokens",
                   "type": "BadRequestError", "param": None, "code": 400}},
        {"object": "error", "type": "BadRequestError", "param": None, "code": 400,
         "message": "The decoder prompt (length 9254) is longer than the maximum model length of 4096."},
        {"error": {"code": 400, "type": "exceed_context_size_error", "message": "request (9412 tokens) is too large"}},
    ],
)  # fmt: skip
async def test_a_conversation_that_is_too_long(upstream: Upstream, error: object) -> None:
    upstream.refuse(400, error)
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(ContextLengthError, match=r"too long for the model.*Shorten it") as caught:
            await ask(engine)
    assert caught.value.param == "messages"


async def test_a_model_that_the_server_does_not_have_is_named(upstream: Upstream) -> None:
    upstream.refuse(404, {"error": {"message": "The model does not exist.", "type": "NotFoundError", "code": 404}})
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(EngineError, match=r"no model 'sleep@0123456789ab', or engine\.base_url.*does not exist"):
            await ask(engine, TUNED)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.25", 0.25), ("soon", 1.0), ("-3", 1.0), ("nan", 1.0), ("", 1.0)],
)
async def test_an_overloaded_server_says_when_to_come_back(
    upstream: Upstream, status: int, header: str, seconds: float
) -> None:
    upstream.refuse(status, {"error": {"message": "Busy.", "code": status}}, retry_after=header)
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(OverloadedError, match=rf"HTTP {status}.*Busy") as caught:
            await ask(engine)
        assert caught.value.retry_after_s == seconds
        assert counts(engine) == (0, 0, 0, 1)


async def test_retry_after_may_be_a_date(upstream: Upstream) -> None:
    upstream.refuse(429, {}, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(OverloadedError) as caught:
            await ask(engine)
    assert 20 < caught.value.retry_after_s <= 30


@pytest.mark.parametrize(
    ("status", "body", "error_type", "says"),
    [
        (500, {"error": {"message": "CUDA out of memory", "code": 500}}, EngineError, "HTTP 500.*CUDA out of memory"),
        (500, "<html>\n<h1>Bad</h1>" + "x" * 2000, EngineError, "HTTP 500.*<html> <h1>Bad</h1>x{100,300}…$"),
        (502, {"detail": "no backend"}, EngineError, "HTTP 502.*no backend"),
        (504, {"error": "gateway"}, EngineTimeoutError, "too slow. gateway"),
        (400, {"error": {"message": "top_p must be in (0, 1]"}}, EngineError, "HTTP 400 for model 'base'. top_p"),
        (401, {"error": {"message": "Incorrect API key: sk-very***6789"}}, EngineError, r"Set engine\.api_key[^*]*$"),
        (307, {}, EngineError, "HTTP 307"),
        (500, [["deep"]], EngineError, "deep"),
    ],
)
async def test_other_refusals(
    upstream: Upstream, status: int, body: object, error_type: type[EngineError], says: str
) -> None:
    upstream.refuse(status, body)
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(EngineError, match=says) as caught:
            await ask(engine)
        assert type(caught.value) is error_type
        assert len(str(caught.value)) < 600
        assert counts(engine) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (("{not json",), "not a chat completion: {not json"),
        (("42",), "not a chat completion"),
        (('{"choices": "none"}',), "not a chat completion"),
        (('{"choices": [{"delta": {"content": ["a"]}}]}',), "not a chat completion"),
        ((json.dumps({"error": {"message": "Engine died", "code": 500}}), "[DONE]"), "was answering. Engine died"),
        ((json.dumps({"object": "error", "message": "Engine died"}),), "was answering. Engine died"),
        ((json.dumps({"error": {"message": "over the maximum context length"}}),), "was answering"),  # text is out
        ((), "ended the answer before it was complete"),
        ((delta(finish_reason="abort"), "[DONE]"), "gave the answer up"),
    ],
)
async def test_an_answer_that_goes_wrong_midway(upstream: Upstream, events: tuple[str, ...], says: str) -> None:
    upstream.events = (delta("REM "), *events)
    async with engine_at(upstream.base_url) as engine:
        stream = engine.stream(SLEEP, QUESTION, GenerationParams())
        assert await anext(stream) == Chunk("REM ")
        with pytest.raises(EngineError, match=says):
            await anext(stream)
        assert counts(engine) == (0, 0, 0, 1)


async def test_an_error_event_may_come_before_any_text(upstream: Upstream) -> None:
    upstream.events = (json.dumps({"error": {"message": "", "code": "context_length_exceeded"}}),)
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(ContextLengthError):
            await ask(engine)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "broke off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke off or is not valid"),
        (SSE_HEAD, "before it was complete"),
        (SSE_HEAD + b"data: [DONE]\n\n", "before it was complete"),
        (SSE_HEAD + b"event: error\ndata: boom\n\n", "failed while model 'base' was answering. boom"),
        (SSE_HEAD.replace(b"text/event-stream", b"application/json") + b"{}", "text/event-stream"),
        (SSE_HEAD.replace(b"connection: close", b"content-length: 999") + b"data: ", "broke off"),
        (SSE_HEAD.replace(b"connection: close", b"transfer-encoding: chunked") + b"zz\r\n", "is not valid"),
        (SSE_HEAD.replace(b"connection: close", b"content-encoding: gzip") + b"plain", "broke off or is not valid"),
        (SSE_HEAD + b"data: " + delta("a").encode()[:20] + b"\xff\xfe\n\n", "not a chat completion"),
    ],
)  # fmt: skip
async def test_bytes_that_are_no_answer(answer: bytes, says: str) -> None:
    async with serve_bytes(answer) as base_url, engine_at(base_url) as engine:
        with pytest.raises(EngineError, match=says):
            await ask(engine)
        assert counts(engine) == (0, 0, 0, 1)


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500, 504])
@pytest.mark.parametrize("said", [f"your header: Bearer {KEY}", {"error": {"message": f"bad key {KEY}", "code": KEY}}])
async def test_the_key_is_never_in_an_error(upstream: Upstream, status: int, said: object) -> None:
    upstream.refuse(status, said)
    upstream.events = (said if isinstance(said, str) else json.dumps(said),)
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises((EngineError, OverloadedError)) as caught:
            await ask(engine)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in str(engine.status())


@pytest.mark.parametrize(
    "base_url",
    ["", "localhost:9000/v1", "ftp://host/v1", "http://", "http://user:hunter2@host/v1", "http://host/v1?key=hunter2",
     "http://host:port/v1", "http://user:hunter2@host:port/v1"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_found_at_start(base_url: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.base_url") as caught:
        OpenAIHTTPEngine(base_url, None, served_model_names("base"))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).replace(f'"{base_url}"', "")


@pytest.mark.parametrize("key", ["sk-a\nb", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_found_at_start(key: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.api_key") as caught:
        OpenAIHTTPEngine("http://host/v1", key, served_model_names("base"))
    assert key not in str(caught.value)


async def test_warm_up_finds_the_model(upstream: Upstream) -> None:
    upstream.models = ("base", "sleep@0123456789ab")
    async with engine_at(f"{upstream.base_url}/") as engine:
        await engine.warm_up(SLEEP)
        await engine.warm_up(TUNED)
    assert {seen.path for seen in upstream.seen} == {"/v1/models"}


async def test_warm_up_says_which_model_is_missing_and_how_to_serve_it(upstream: Upstream) -> None:
    upstream.models = ("other", "sleep@ffffffffffff")
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(
            NotReadyError, match=r"'base'; it serves other, sleep@ffffffffffff.*--served-model-name base"
        ):
            await engine.warm_up(SLEEP)
        with pytest.raises(NotReadyError, match="--lora-modules sleep@0123456789ab=experts/sleep/adapters/base"):
            await engine.warm_up(TUNED)


async def test_warm_up_says_what_is_wrong_with_the_server(upstream: Upstream) -> None:
    upstream.refuse(503, {"error": {"message": "Loading"}})
    async with engine_at(upstream.base_url) as engine:
        with pytest.raises(NotReadyError, match=r"HTTP 503.*Loading"):
            await engine.warm_up(SLEEP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    async with engine_at(base_url) as engine:
        with pytest.raises(NotReadyError, match="cannot be reached"):
            await engine.warm_up(SLEEP)
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"
    async with serve_bytes(page) as base_url, engine_at(base_url) as engine:
        with pytest.raises(NotReadyError, match="not a list of models"):
            await engine.warm_up(SLEEP)


async def test_closing_the_engine_ends_what_runs_and_refuses_what_comes(upstream: Upstream) -> None:
    upstream.hang_after = 2
    async with engine_at(upstream.base_url) as engine:
        stream = engine.stream(SLEEP, QUESTION, GenerationParams())
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(EngineError):
            await asyncio.wait_for(waiting, 2.0)
        with pytest.raises(EngineError, match="closed"):
            await ask(engine)
        assert counts(engine)[0] == 0
