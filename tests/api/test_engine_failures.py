"""When the engine, the router or the server's room fails: the right status before the first word, an event after it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.types import Chunk, Scores
from support import BOTH_QUESTION, FixedRouter, Server, chat_body, events, eventually, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Expert, GenerationParams, Message

SECRET = "/srv/secret/weights.gguf"
HANG = EchoScript(hang_after_tokens=0)

streamed_or_not = pytest.mark.parametrize("stream", [False, True])


class BuggyEngine(EchoEngine):
    """Breaks with an error of no known kind, after ``words`` words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self._words = words

    async def stream(
        self,
        expert: Expert,  # noqa: ARG002 - the port's signature
        messages: Sequence[Message],  # noqa: ARG002
        params: GenerationParams,  # noqa: ARG002
    ) -> AsyncGenerator[Chunk]:
        for number in range(self._words):
            yield Chunk(f"word{number} ")
        raise RuntimeError(f"cannot read {SECRET}")


class BuggyRouter(FixedRouter):
    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        raise RuntimeError(f"cannot read {SECRET}: {query} {history}")


def error_of(server: Server, status: int, **body: Any) -> dict[str, Any]:
    response = server.post(**body)
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def texts(chunks: list[Any]) -> list[str]:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if "choices" in chunk]
    return [delta["content"] for delta in deltas if delta.get("content")]


@streamed_or_not
def test_a_failure_before_the_first_word_is_a_bad_gateway(stream: bool) -> None:
    with serve(EchoEngine(EchoScript(fail_before=True))) as server:
        error = error_of(server, 502, stream=stream)
        assert (error["type"], error["code"]) == ("engine_error", "engine_failed")
        assert "before its first word" in error["message"]
        assert server.counts() == {"failed": 1}


def test_a_late_failure_before_the_first_word_is_an_error_event_after_the_routing() -> None:
    with serve(EchoEngine(EchoScript(first_token_delay_s=1.2, fail_before=True))) as server:
        response = server.post(stream=True)
        first, last = events(response.text)
        assert response.status_code == 200
        assert first["expert_router"]["experts"] == ["sleep"]
        assert last["error"]["code"] == "engine_failed"


def test_a_failure_midway_is_an_error_event_and_the_streams_end() -> None:
    with serve(EchoEngine(EchoScript(fail_after_tokens=2))) as server:
        response = server.post(stream=True, stream_options={"include_usage": True})
        *chunks, last = events(response.text)
        assert response.status_code == 200
        assert texts(chunks) == ["[Sleep", " science]"]
        assert last == {
            "error": {
                "message": "The echo engine failed after 2 words, as its script says.",
                "type": "engine_error",
                "param": None,
                "code": "engine_failed",
            }
        }
        assert "[DONE]" not in response.text
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert server.counts() == {"failed": 1}
        assert server.dispatcher.admission.running == 0


def test_a_failure_midway_leaves_no_half_of_a_whole_answer() -> None:
    with serve(EchoEngine(EchoScript(fail_after_tokens=2))) as server:
        assert error_of(server, 502)["code"] == "engine_failed"


@pytest.mark.parametrize("fails", ["cars", "sleep"])
@streamed_or_not
def test_one_experts_failure_leaves_the_others_section_and_says_so(stream: bool, fails: str) -> None:
    with serve(EchoEngine(by_expert={fails: EchoScript(fail_before=True)})) as server:
        body = chat_body(BOTH_QUESTION, model="auto", stream=stream)
        response = server.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        if stream:
            *chunks, done = events(response.text)
            assert done == "[DONE]"
            text, parts = "".join(texts(chunks)), chunks[-1]["expert_router"]["parts"]
            assert [
                chunk["expert_router"]["failed"] for chunk in chunks if "failed" in chunk.get("expert_router", {})
            ] == [fails]
        else:
            text = response.json()["choices"][0]["message"]["content"]
            parts = response.json()["expert_router"]["parts"]
        for part in parts:
            said = text[part["start"] : part["end"]]
            assert said.startswith("This part could not be answered: " if part["expert"] == fails else "[")
            assert (part["error"] is not None) == (part["expert"] == fails)
        assert [part["expert"] for part in parts] == ["cars", "sleep"]
        assert server.counts() == {"finished": 1, "failed": 1}


@streamed_or_not
def test_where_all_experts_fail_it_is_an_error(stream: bool) -> None:
    with serve(EchoEngine(EchoScript(fail_before=True))) as server:
        body = chat_body(BOTH_QUESTION, model="auto", stream=stream)
        response = server.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_failed")


@streamed_or_not
def test_a_server_behind_that_stays_silent_is_a_gateway_timeout(stream: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with serve(OpenAIHTTPEngine(address, None, served_model_names("base"), read_timeout_s=0.1)) as server:
            assert error_of(server, 504, stream=stream)["code"] == "engine_timeout"


@streamed_or_not
def test_a_server_behind_that_is_down_is_a_bad_gateway(stream: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        address = f"http://127.0.0.1:{closing.getsockname()[1]}/v1"
    with serve(OpenAIHTTPEngine(address, None, served_model_names("base"))) as server:
        assert error_of(server, 502, stream=stream)["code"] == "engine_failed"


@streamed_or_not
@pytest.mark.parametrize("where", ["engine", "router"])
def test_a_bug_is_a_500_that_says_nothing_of_the_inside(
    stream: bool, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BuggyEngine(words=0) if where == "engine" else EchoEngine()
    router = BuggyRouter(Scores({}, 1.0)) if where == "router" else None
    with serve(engine, router) as server:
        error = error_of(server, 500, model="auto", stream=stream)
        assert error == {
            "message": "The server failed. Its log says why.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
        assert server.http.get("/health/live").status_code == 200
    assert SECRET in caplog.text  # nothing is swallowed either: the log has the stack trace
    assert "Traceback" in caplog.text


def test_a_bug_midway_is_an_error_event_that_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    with serve(BuggyEngine(words=2)) as server:
        response = server.post(stream=True)
        *chunks, last = events(response.text)
        assert texts(chunks) == ["word0 ", "word1 "]
        assert last["error"]["code"] == "internal_error"
        assert "secret" not in response.text
        assert "Traceback" not in response.text
    assert SECRET in caplog.text


def test_the_query_endpoint_fails_in_the_same_shape() -> None:
    with serve(EchoEngine(EchoScript(fail_before=True))) as server:
        response = server.http.post("/query", json={"query": "What is REM sleep?"})
        assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_failed")
    with serve(BuggyEngine(words=1)) as server:
        response = server.http.post("/query", json={"query": "What is REM sleep?"})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


@streamed_or_not
def test_when_the_queue_is_full_the_answer_is_429_with_retry_after(stream: bool) -> None:
    with serve(EchoEngine(HANG), max_running=1, max_queue=1) as server:
        door = server.dispatcher.admission
        with server.asking():
            eventually(lambda: door.running == 1)
            with server.asking():
                eventually(lambda: door.waiting == 1)
                response = server.post(stream=stream)
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                error = response.json()["error"]
                assert (error["type"], error["code"]) == ("overloaded_error", "overloaded")
                assert "Try again" in error["message"]
                assert server.http.get("/health/ready").json()["requests"] == {"running": 1, "waiting": 1}


@streamed_or_not
def test_who_waits_too_long_is_told_to_come_back(stream: bool) -> None:
    with serve(EchoEngine(HANG), max_running=1, max_queue=1, queue_timeout_s=0.1) as server, server.asking():
        eventually(lambda: server.dispatcher.admission.running == 1)
        response = server.post(stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert server.dispatcher.admission.waiting == 0


@streamed_or_not
def test_an_engine_without_room_is_429_with_its_retry_after(stream: bool) -> None:
    with serve(EchoEngine(EchoScript(max_slots=0))) as server:
        response = server.post(stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")


@streamed_or_not
def test_a_prompt_beyond_the_context_is_refused_before_any_text(stream: bool) -> None:
    with serve(EchoEngine(EchoScript(context_length=6))) as server:
        error = error_of(server, 400, stream=stream)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert error["type"] == "invalid_request_error"


def test_after_a_failure_the_next_question_is_answered() -> None:
    with serve(EchoEngine(by_expert={"sleep": EchoScript(fail_after_tokens=1)}), max_running=1, max_queue=0) as server:
        for stream in (False, True):
            server.post(stream=stream)
            assert server.post(model="cars").status_code == 200
