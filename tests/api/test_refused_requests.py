"""What the server does not understand: refused with the right status, in OpenAI's shape, before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine
from support import chat_body, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from support import Server

COMPLETIONS = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MAX_BODY_BYTES = 5000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine(), max_body_bytes=MAX_BODY_BYTES) as running:
        yield running
        assert running.counts() == {}  # nothing of all this reached the engine


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object, which has OpenAI's four keys and nothing beside it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("path", [COMPLETIONS, "/query"])
@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"not json", b'{"model": "sleep",}', b'"text"', b"[1]", b"null", b"7", b'{"messages": "\xff"}',
     b"[" * 4000, b"\x00", b"{}"],
)  # fmt: skip
def test_what_is_not_a_json_object_of_the_right_shape_is_a_bad_request(
    server: Server, path: str, content: bytes
) -> None:
    error = error_of(server.http.post(path, content=content, headers=JSON), 400)
    assert error["type"] == "invalid_request_error"


def test_broken_json_is_called_broken_json(server: Server) -> None:
    error = error_of(server.http.post(COMPLETIONS, content=b"{'model'}", headers=JSON), 400)
    assert error["message"] == "The body is not valid JSON."


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data"},
                                     {"content-type": "application/x-www-form-urlencoded"}])  # fmt: skip
def test_another_content_type_is_a_bad_request_that_names_the_right_one(
    server: Server, headers: dict[str, str]
) -> None:
    content = b'{"model": "sleep", "messages": [{"role": "user", "content": "Hi"}]}'
    error = error_of(server.http.post(COMPLETIONS, content=content, headers=headers), 400)
    assert "application/json" in error["message"]


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("model", None), ("model", 7), ("model", ["sleep"]),
        ("messages", None), ("messages", []), ("messages", "Hi"), ("messages", [None]), ("messages", USER),
        ("messages", [{"role": "user"}]), ("messages", [{"content": "Hi"}]),
        ("messages", [{"role": "king", "content": "Hi"}]), ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": 7}]), ("messages", [{"role": "tool", "content": "Hi"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": "  \n"}]),
        ("messages", [USER, {"role": "assistant", "content": "x"}]),
        ("messages", [{"role": "system", "content": "x"}]),
        ("stream", "yes"), ("stream", 1), ("stream_options", True), ("stream_options", {"include_usage": "yes"}),
        ("max_tokens", "5"), ("max_tokens", True), ("max_tokens", 1.5), ("max_tokens", 0), ("max_tokens", [5]),
        ("max_completion_tokens", "many"), ("max_completion_tokens", 0),
        ("temperature", "hot"), ("temperature", "0.5"), ("temperature", True), ("temperature", 3), ("top_p", 0),
        ("seed", "1"), ("seed", 1.5), ("seed", -1), ("stop", 7), ("stop", [7]), ("stop", {"a": 1}),
        ("stop", ["a", "b", "c", "d", "e"]),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value_is_a_bad_request_that_names_the_parameter(
    server: Server, param: str, value: Any
) -> None:
    error = error_of(server.post(**{param: value}), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_what_is_no_text_is_refused_by_its_name(server: Server) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = error_of(server.post(messages=[{"role": "user", "content": parts}]), 400)
    assert error["message"] == "messages.0.content: Only parts of the type text are read, not image_url"


@pytest.mark.parametrize(
    ("param", "value"),
    [("n", 2), ("presence_penalty", 0.5), ("frequency_penalty", -1), ("logprobs", True), ("logit_bias", {"7": 9}),
     ("tools", [{"type": "function", "function": {"name": "f"}}]), ("functions", [{"name": "f"}]),
     ("response_format", {"type": "json_object"})],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_parameter_that_would_be_ignored_is_refused_by_name(
    server: Server, param: str, value: Any, stream: bool
) -> None:
    error = error_of(server.post(**{param: value, "stream": stream}), 400)
    assert error["param"] == param
    assert "Not supported" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(server: Server, stream: bool) -> None:
    for name in ("gpt-4o", "", "Sleep", "../sleep"):
        error = error_of(server.post(model=name, stream=stream), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = error_of(server.http.get("/v1/models/gpt-4o"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_half_a_character_is_a_bad_request(server: Server) -> None:
    for field in ('"model": "\\ud800"', '"model": "sleep", "stop": "\\udc00"'):
        content = f'{{{field}, "messages": [{{"role": "user", "content": "Hi"}}]}}'
        error_of(server.http.post(COMPLETIONS, content=content.encode(), headers=JSON), 400)
    content = b'{"model": "sleep", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    error_of(server.http.post(COMPLETIONS, content=content, headers=JSON), 400)
    error_of(server.http.post("/query", content=b'{"query": "\\ud83d"}', headers=JSON), 400)


@pytest.mark.parametrize("path", [COMPLETIONS, "/query"])
def test_a_body_announced_as_too_large_is_refused_unread(server: Server, path: str) -> None:
    error = error_of(server.http.post(path, content=b" " * (MAX_BODY_BYTES + 1), headers=JSON), 413)
    assert (error["code"], error["type"]) == ("body_too_large", "invalid_request_error")
    assert str(MAX_BODY_BYTES) in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, "/query"])
def test_a_body_that_turns_out_too_large_is_refused_too(server: Server, path: str) -> None:
    pieces = (b" " * 1000 for _ in range(MAX_BODY_BYTES // 1000 + 1))  # sent chunked, without a length
    error = error_of(server.http.post(path, content=pieces, headers=JSON), 413)
    assert error["code"] == "body_too_large"


def test_a_body_of_just_the_limit_is_read(server: Server) -> None:
    content = json.dumps(chat_body(model="nobody")).encode().ljust(MAX_BODY_BYTES)
    assert error_of(server.http.post(COMPLETIONS, content=content, headers=JSON), 404)["code"] == "model_not_found"


def test_an_unknown_path_and_a_wrong_method_have_openais_shape_too(server: Server) -> None:
    error_of(server.http.get("/v1/completions"), 404)
    error_of(server.http.post("/v1/embeddings", json={}), 404)
    response = server.http.get(COMPLETIONS)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
