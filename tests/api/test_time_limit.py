"""How long a request may take: one that has not begun is answered, one that has is broken off, and pages go on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.api.time_limit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Message, Receive, Scope, Send

SECONDS = 0.05


class Hanging:
    """Answers, or begins to, and hangs; ``cancelled`` once it was left."""

    def __init__(self, *, begins: bool = False) -> None:
        self.begins = begins
        self.cancelled = False

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


async def ask(app: Callable[[Scope, Receive, Send], Awaitable[None]], path: str) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    await app({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/query"])
async def test_an_answer_that_does_not_begin_in_time_is_an_error(path: str) -> None:
    app = Hanging()
    start, body = await ask(TimeLimit(app, SECONDS), path)
    assert app.cancelled
    assert start["status"] == 504
    assert json.loads(body["body"])["error"]["code"] == "request_timeout"


async def test_one_that_has_begun_is_broken_off() -> None:
    app = Hanging(begins=True)
    assert [message["type"] for message in await ask(TimeLimit(app, SECONDS), "/query")] == ["http.response.start"]
    assert app.cancelled


@pytest.mark.parametrize(("seconds", "path"), [(SECONDS, "/chat/gradio_api/heartbeat/x"), (None, "/query")])
async def test_a_page_and_a_server_without_a_limit_go_on(seconds: float | None, path: str) -> None:
    app = Hanging()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(TimeLimit(app, seconds), path), SECONDS * 3)


async def test_another_timeout_stays_what_it_is() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - an application's signature
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await ask(TimeLimit(failing, 60), "/query")
