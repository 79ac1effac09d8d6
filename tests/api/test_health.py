from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.errors import EngineError, NotReadyError
from support import Server, chat_body, eventually, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message


def state(server: Server) -> tuple[int, str]:
    response = server.http.get("/health/ready")
    return response.status_code, response.json()["status"]


def remote_engine(port: int) -> OpenAIHTTPEngine:
    return OpenAIHTTPEngine(f"http://127.0.0.1:{port}/v1", None, served_model_names("base"))


class BrokenStart(EchoEngine):
    async def warm_up(self, expert: Expert) -> None:
        raise RuntimeError(f"/srv/secret: {expert.name}")


def test_alive_means_the_process_answers() -> None:
    with serve(EchoEngine()) as server:
        response = server.http.get("/health/live")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ready_says_what_it_serves_with_and_what_it_does() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=0)), warm_up=True) as server:
        eventually(lambda: state(server) == (200, "ready"))
        body = server.http.get("/health/ready").json()
        assert body["reason"] is None
        assert body["experts"] == ["sleep", "cars"]
        assert body["router"] == {"name": "lexical", "experts": ["sleep", "cars"]}
        assert (body["engine"]["name"], body["engine"]["running"]) == ("echo", 0)
        assert body["requests"] == {"running": 0, "waiting": 0}
        with server.asking():
            eventually(lambda: server.http.get("/health/ready").json()["engine"]["running"] == 1)
            assert server.http.get("/health/ready").json()["requests"] == {"running": 1, "waiting": 0}


def test_without_a_warm_up_it_is_ready_at_once() -> None:
    with serve(EchoEngine()) as server:
        assert state(server) == (200, "ready")


def test_it_is_loading_until_the_engine_is_warm_and_alive_all_the_while() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as behind,
        serve(remote_engine(behind.getsockname()[1]), warm_up=True) as server,
    ):
        eventually(lambda: state(server) == (503, "loading"))
        assert server.http.get("/health/ready").json()["reason"]
        assert server.http.get("/health/live").status_code == 200
        answering = threading.Thread(target=_list_the_models, args=(behind,), daemon=True)
        answering.start()
        eventually(lambda: state(server) == (200, "ready"))


def test_a_server_that_is_still_loading_stops_when_told_to() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        serve(remote_engine(silent.getsockname()[1]), warm_up=True) as server,
    ):
        eventually(lambda: state(server) == (503, "loading"))
        server.stop()


def test_an_engine_that_cannot_start_is_failed_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    with serve(remote_engine(port), warm_up=True) as server:
        eventually(lambda: state(server) == (503, "failed"))
        assert f"127.0.0.1:{port}" in server.http.get("/health/ready").json()["reason"]
        assert server.http.get("/health/live").status_code == 200


class LateStart(EchoEngine):
    """As one whose process was killed while it loaded for the first time."""

    tries = 0

    async def warm_up(self, expert: Expert) -> None:  # noqa: ARG002 - the port's signature
        self.tries += 1
        if self.tries == 1:
            raise NotReadyError("The model cannot be loaded: its process ended (killed).")


def test_a_start_that_failed_is_tried_again_without_anybody() -> None:
    with serve(LateStart(), warm_up=True) as server:
        eventually(lambda: state(server) == (503, "failed"))
        eventually(lambda: state(server) == (200, "ready"), within_s=10)


def test_the_reason_says_nothing_of_a_bugs_inside() -> None:
    with serve(BrokenStart(), warm_up=True) as server:
        eventually(lambda: state(server) == (503, "failed"))
        assert server.http.get("/health/ready").json()["reason"] == "the engine could not be started; see the log"


def _list_the_models(behind: socket.socket) -> None:
    """Answer requests for the list of models until the socket is closed, as the server behind does once it is up."""
    body = b'{"object": "list", "data": [{"id": "base", "object": "model"}]}'
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with suppress(OSError):
        while True:
            connection, _ = behind.accept()
            with connection:
                while connection.recv(65536):
                    connection.sendall(head.encode() + body)


class OneExpertRefused(EchoEngine):
    """As an engine whose adapter for one expert is not the one meant, until it is ``mended``."""

    mended = False

    async def warm_up(self, expert: Expert) -> None:
        if expert.name == "cars" and not self.mended:
            raise NotReadyError("The adapter of 'cars' is another one than its manifest names.")


def test_an_expert_that_is_refused_is_named_with_the_reason_and_the_others_serve() -> None:
    engine = OneExpertRefused()
    with serve(engine, warm_up=True) as server:
        eventually(lambda: state(server) == (200, "degraded"))
        body = server.http.get("/health/ready").json()
        assert body["refused"] == {"cars": "The adapter of 'cars' is another one than its manifest names."}
        assert "cars" in body["reason"]
        engine.mended = True
        eventually(lambda: state(server) == (200, "ready"), within_s=10)


class LosesItsModel(EchoEngine):
    """As an engine whose model died: its answers fail, and it cannot be loaded, until it is ``mended``."""

    mended = True

    async def warm_up(self, expert: Expert) -> None:
        if not self.mended:
            raise NotReadyError(f"The model of {expert.name!r} cannot be loaded: killed.")

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        if not self.mended:
            raise EngineError("The model's process ended (killed).")
        async for chunk in super().stream(expert, messages, params):
            yield chunk


def test_it_is_degraded_from_an_answer_that_failed_until_the_expert_can_answer_again() -> None:
    engine = LosesItsModel()
    with serve(engine, warm_up=True) as server:
        eventually(lambda: state(server) == (200, "ready"))
        engine.mended = False
        assert server.http.post("/v1/chat/completions", json=chat_body()).status_code == 502
        assert state(server) == (200, "degraded")
        assert list(server.http.get("/health/ready").json()["refused"]) == ["sleep"]
        assert 'expert_router_expert_ready{expert="sleep"} 0' in server.http.get("/metrics").text
        eventually(lambda: "killed" in server.http.get("/health/ready").json()["refused"]["sleep"], within_s=10)
        engine.mended = True
        eventually(lambda: state(server) == (200, "ready"), within_s=10)
        assert 'expert_router_expert_ready{expert="sleep"} 1' in server.http.get("/metrics").text


def test_what_the_caller_did_wrong_is_nobodys_trouble() -> None:
    with serve(EchoEngine(EchoScript(context_length=8))) as server:
        refused = server.http.post("/v1/chat/completions", json=chat_body("sleep " * 100))
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert state(server) == (200, "ready")
