"""One server that speaks OpenAI's API: what is asked of it over HTTP, and how its answers are read."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import httpx2
from pydantic import ValidationError
from pydantic_core import to_json

from expert_router.engines.events import EventParser
from expert_router.engines.http_client import NO_HEADERS, BrokenAnswerError, HTTPClient
from expert_router.engines.remote.completions import Complaint, CompletionEvent, ModelList, PartialAnswer
from expert_router.engines.remote.failures import AttemptError, Failures, too_long
from expert_router.errors import ConfigError, EngineError, NotReadyError
from expert_router.types import Chunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from expert_router.engines.events import Event
    from expert_router.engines.http_client import Response

DONE = b"[DONE]"
EVENT_STREAM = "text/event-stream"
MAX_BODY_BYTES = 1024**2
"""Read of an error or a model list; the rest is left."""
END_OF_BODY_TIMEOUT_S = 0.05
ALREADY_LOADED = "already been loaded"
NO_SUCH_ROUTE = {(404, "Not Found"), (405, "Method Not Allowed")}


class Upstream:
    """``address`` is the one up to and including ``/v1``. All that it is asked raises ``AttemptError``.

    ``connect_timeout_s`` bounds the wait for a connection, ``read_timeout_s`` the silence before and between the
    pieces of an answer. Raises ``ConfigError`` for an address or a key that cannot be sent.
    """

    def __init__(
        self, base_url: str, api_key: str | None, connect_timeout_s: float = 5.0, read_timeout_s: float = 60.0
    ) -> None:
        self.address = checked_address(base_url)
        key = _checked_key(api_key)
        self.failures = Failures(self.address, key, connect_timeout_s, read_timeout_s)
        self._client = HTTPClient(
            httpx2.URL(self.address),
            {"authorization": f"Bearer {key}"} if key else {},
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )

    async def stream(self, model: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> AsyncGenerator[Chunk]:
        """The answer to a chat completion's ``body``, in pieces; the last one comes when the connection is free.

        Closing the iterator closes the connection, which is how these servers notice that nobody listens any more.
        Without the server's count, ``completion_tokens`` is the number of pieces and ``prompt_tokens`` 0: not known.
        """
        answer = PartialAnswer()
        async with self._request("POST", "chat/completions", body, headers) as response:
            if response.status != httpx2.codes.OK:
                raise self.failures.refusal(response, await _complaint(response), model)
            async with aclosing(self._events(response)) as events:
                async for event in events:
                    if event.data == DONE:
                        answer.done = True
                        break
                    if text := answer.add(self._parsed(event, model, answer)):
                        yield Chunk(text)
            if answer.done:
                await response.finish(END_OF_BODY_TIMEOUT_S)
        if why := answer.missing:
            raise AttemptError(EngineError(f"{self.address} {why}. Check its log."), broke_off=True)
        yield answer.last_chunk()

    async def models(self) -> list[str]:
        """The names that it serves."""
        async with self._request("GET", "models") as response:
            if response.status != httpx2.codes.OK:
                raise self.failures.refusal(response, await _complaint(response), "")
            body = await _read_some(response)
        try:
            return ModelList.model_validate_json(body).names
        except ValidationError:
            raise AttemptError(
                EngineError(
                    f"{self.address}/models is not a list of models: is engine.base_url an OpenAI-compatible server's?"
                )
            ) from None

    async def load(self, name: str, folder: Path) -> bool:
        """Let it serve the adapter in ``folder``, which is at that path there too, under ``name`` (vLLM's endpoint).

        False when it takes no adapters while it runs.
        """
        asked = to_json({"lora_name": name, "lora_path": str(folder)})
        async with self._request("POST", "load_lora_adapter", asked) as response:
            if response.status == httpx2.codes.OK:
                await _read_some(response)
                return True
            complaint = await _complaint(response)
        if ALREADY_LOADED in complaint.message:
            return True
        if (response.status, complaint.message) in NO_SUCH_ROUTE:
            return False
        raise AttemptError(
            NotReadyError(
                f"{self.address} could not load the adapter {name} from {folder} (HTTP {response.status}: "
                f"{self.failures.quoted(complaint.message)}). That folder has to be there, and its rank within "
                "--max-lora-rank."
            ),
            repeatable=True,
        )

    async def unload(self, name: str) -> None:
        """Let it forget an adapter."""
        async with self._request("POST", "unload_lora_adapter", to_json({"lora_name": name})) as response:
            if response.status != httpx2.codes.OK:
                raise self.failures.refusal(response, await _complaint(response), name)
            await _read_some(response)

    def close(self) -> None:
        """Close all connections; what still runs breaks off."""
        self._client.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[Response]:
        if self._client.is_closed:
            raise AttemptError(EngineError("The engine is closed."))
        with self.failures.typed():
            async with self._client.request(method, path, body, headers) as response:
                yield response

    async def _events(self, response: Response) -> AsyncGenerator[Event]:
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != EVENT_STREAM:
            said = self.failures.quoted(content_type) or "nothing"
            raise AttemptError(
                EngineError(f"{self.address} was asked for {EVENT_STREAM} and sends {said}. Is it OpenAI-compatible?")
            )
        parser = EventParser()
        async with aclosing(response.pieces()) as pieces:
            async for piece in pieces:
                try:
                    complete = parser.feed(piece)
                except ValueError as error:
                    raise BrokenAnswerError(str(error)) from error
                for event in complete:
                    yield event

    def _parsed(self, event: Event, model: str, answer: PartialAnswer) -> CompletionEvent:
        """Raises what an error event says, and an error for an event that is not a piece of a completion."""
        if not event.data.strip():
            return CompletionEvent()
        if event.kind != b"error":
            try:
                parsed = CompletionEvent.model_validate_json(event.data)
            except ValidationError:
                said = self.failures.quoted(event.text)
                raise AttemptError(
                    EngineError(f"{self.address} sent an event that is not a chat completion: {said}")
                ) from None
            if not parsed.is_error:
                return parsed
        complaint = Complaint.read(event.data)
        said = self.failures.quoted(complaint.message)
        if complaint.is_context_length and not answer.pieces:
            raise AttemptError(too_long(said))
        raise AttemptError(
            EngineError(f"{self.address} failed while model {model!r} was answering. {said}"), failure=True
        )


def checked_address(base_url: str) -> str:
    """The address as it is used and compared. Raises ``ConfigError``."""
    try:
        url = httpx2.URL(base_url.strip().rstrip("/"))
    except httpx2.InvalidURL:
        raise ConfigError(
            "engine.base_url or one of engine.upstreams is not an address: it must look like http://host:port/v1."
        ) from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "engine.base_url and each of engine.upstreams must look like http://host:port/v1, without a user name, "
            "password or query: a secret belongs in engine.api_key."
        )
    return str(url)


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("engine.api_key has characters that no HTTP header can carry.")
    return key or None


async def _complaint(response: Response) -> Complaint:
    return Complaint.read(await _read_some(response))


async def _read_some(response: Response) -> bytes:
    """The body, cut after ``MAX_BODY_BYTES``."""
    body = bytearray()
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) >= MAX_BODY_BYTES:
                break
    return bytes(body[:MAX_BODY_BYTES])
