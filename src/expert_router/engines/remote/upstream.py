"""One server behind the gateway: its address and key, an answer of it, and what its failures mean."""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

import httpx2
from pydantic import ValidationError

from expert_router.engines.events import EventParser
from expert_router.engines.http_client import (
    BrokenAnswerError,
    ConnectError,
    ConnectTimeoutError,
    HTTPClient,
    SilenceError,
)
from expert_router.engines.remote.completions import (
    Complaint,
    CompletionEvent,
    ModelList,
    PartialAnswer,
    retry_after_s,
)
from expert_router.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    EngineTimeoutError,
    ExpertRouterError,
    OverloadedError,
)
from expert_router.types import Chunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from expert_router.engines.events import Event
    from expert_router.engines.http_client import Response

DONE = b"[DONE]"
SERVER_ERROR = 500
EVENT_STREAM = "text/event-stream"
MAX_BODY_BYTES = 1024**2
"""Read of an error or a model list; the rest is left."""
MAX_QUOTE = 300
"""Characters of the server's own words in an error text."""
DEFAULT_RETRY_AFTER_S = 1.0
END_OF_BODY_TIMEOUT_S = 0.05


class AttemptError(Exception):
    """A request that came to nothing at one server: ``error`` is what to tell who asked.

    ``repeatable``: as long as nothing of an answer was passed on, another server may be asked. ``broke_off``: the
    request may be why, so not many others. ``failure``: it speaks against the server. ``missing``: the server does not
    have the model. ``rest_s``: the server asked to be left alone for so long.
    """

    def __init__(
        self,
        error: ExpertRouterError,
        *,
        repeatable: bool = False,
        broke_off: bool = False,
        failure: bool = False,
        missing: bool = False,
        rest_s: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.repeatable = repeatable or broke_off
        self.broke_off = broke_off
        self.failure = failure or broke_off
        self.missing = missing
        self.rest_s = rest_s


class Upstream:
    """``address`` is the one up to and including ``/v1``. All that it does raises ``AttemptError``.

    ``connect_timeout_s`` bounds the wait for a connection, ``read_timeout_s`` the silence before and between the
    pieces of an answer. Raises ``ConfigError`` for an address or a key that cannot be sent.
    """

    def __init__(self, base_url: str, api_key: str | None, connect_timeout_s: float, read_timeout_s: float) -> None:
        self.address = checked_address(base_url)
        self._api_key = _checked_key(api_key)
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._client = HTTPClient(
            httpx2.URL(self.address),
            {"authorization": f"Bearer {self._api_key}"} if self._api_key else {},
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )

    async def stream(self, model: str, body: bytes) -> AsyncGenerator[Chunk]:
        """The answer to a chat completion's ``body``, in pieces; the last one is there when the connection is free.

        Closing the iterator closes the connection, which is how these servers notice that nobody listens any more.
        Without the server's count, ``completion_tokens`` is the number of pieces and ``prompt_tokens`` 0: not known.
        """
        answer = PartialAnswer()
        with self._typed_errors():
            async with self._client.request("POST", "chat/completions", body) as response:
                await self._refuse_unless_ok(response, model)
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
        with self._typed_errors():
            async with self._client.request("GET", "models") as response:
                await self._refuse_unless_ok(response, "")
                body = await _read_some(response)
        try:
            return ModelList.model_validate_json(body).names
        except ValidationError:
            raise AttemptError(
                EngineError(
                    f"{self.address}/models is not a list of models: is engine.base_url an OpenAI-compatible server's?"
                )
            ) from None

    def close(self) -> None:
        """Close all connections; what still runs breaks off."""
        self._client.close()

    def quoted(self, text: str) -> str:
        """The server's own words, fit for an error text: on one line, short, without the API key."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        text = " ".join(text.split())
        return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"

    async def _events(self, response: Response) -> AsyncGenerator[Event]:
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != EVENT_STREAM:
            said = self.quoted(content_type) or "nothing"
            raise AttemptError(
                EngineError(f"{self.address} was asked for {EVENT_STREAM} and sends {said}. Is it OpenAI-compatible?")
            )
        parser = EventParser()
        async with aclosing(response.pieces()) as pieces:
            async for piece in pieces:
                for event in parser.feed(piece):
                    yield event

    async def _refuse_unless_ok(self, response: Response, model: str) -> None:
        if response.status != httpx2.codes.OK:
            raise self._refusal(response, Complaint.read(await _read_some(response)), model)

    def _refusal(self, response: Response, complaint: Complaint, model: str) -> AttemptError:
        """What an answer that is not 200 means."""
        status, said = response.status, self.quoted(complaint.message)
        where = f"{self.address} answered HTTP {status}"
        if complaint.is_context_length and httpx2.codes.is_client_error(status):
            return AttemptError(_too_long(said))
        match status:
            case 401 | 403:  # the server's words may quote a part of the key
                return AttemptError(
                    EngineError(f"{where}: it does not accept the API key. Set engine.api_key to one that it knows.")
                )
            case 404:
                error = (
                    f"{where}: it has no model {model!r}, or engine.base_url is not its API (most end in /v1). {said}"
                )
                return AttemptError(EngineError(error), missing=True)
            case 429 | 503:
                rest_s = retry_after_s(response.headers.get("retry-after", ""))
                full = OverloadedError(
                    f"{where}: it takes no more requests now; try again. {said}",
                    retry_after_s=DEFAULT_RETRY_AFTER_S if rest_s is None else rest_s,
                )
                return AttemptError(full, repeatable=True, failure=response.status >= SERVER_ERROR, rest_s=rest_s)
            case 408 | 504:
                slow = EngineTimeoutError(f"{where}: it was too slow. {said}")
                late = response.status >= SERVER_ERROR
                return AttemptError(slow, repeatable=late, failure=late)
            case _:
                return AttemptError(
                    EngineError(f"{where} for model {model!r}. {said}"),
                    repeatable=status == httpx2.codes.BAD_GATEWAY,
                    failure=status >= SERVER_ERROR,
                )

    def _parsed(self, event: Event, model: str, answer: PartialAnswer) -> CompletionEvent:
        """Raises what an error event says, and an error for an event that is not a piece of a completion."""
        if not event.data.strip():
            return CompletionEvent()
        if event.kind != b"error":
            try:
                parsed = CompletionEvent.model_validate_json(event.data)
            except ValidationError:
                said = self.quoted(event.text)
                raise AttemptError(
                    EngineError(f"{self.address} sent an event that is not a chat completion: {said}")
                ) from None
            if not parsed.is_error:
                return parsed
        complaint = Complaint.read(event.data)
        said = self.quoted(complaint.message)
        if complaint.is_context_length and not answer.pieces:
            raise AttemptError(_too_long(said))
        raise AttemptError(
            EngineError(f"{self.address} failed while model {model!r} was answering. {said}"), failure=True
        )

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Turn what the HTTP client raises into what it means."""
        if self._client.is_closed:
            raise AttemptError(EngineError("The engine is closed."))
        try:
            yield
        except ConnectTimeoutError as error:
            late = EngineTimeoutError(
                f"{self.address} did not accept a connection within {self._connect_timeout_s:g} s. "
                "Check that it is up and reachable, or set engine.base_url."
            )
            raise AttemptError(late, repeatable=True, failure=True) from error
        except SilenceError as error:
            silent = EngineTimeoutError(
                f"{self.address} was silent for {self._read_timeout_s:g} s. "
                "Check its load, or raise engine.read_timeout_s."
            )
            raise AttemptError(silent, failure=True) from error
        except ConnectError as error:
            reason = self.quoted(str(error))
            away = EngineError(f"{self.address} cannot be reached ({reason}). Start it, or set engine.base_url.")
            raise AttemptError(away, repeatable=True, failure=True) from error
        except BrokenAnswerError as error:
            reason = self.quoted(str(error))
            broken = EngineError(f"The answer of {self.address} broke off or is not valid: {reason}")
            raise AttemptError(broken, broke_off=True) from error


def checked_address(base_url: str) -> str:
    """The address as it is used and compared. Raises ``ConfigError``."""
    try:
        url = httpx2.URL(base_url.strip().rstrip("/"))
    except httpx2.InvalidURL:
        raise ConfigError("engine.base_url is not an address: it must look like http://host:port/v1.") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "engine.base_url must look like http://host:port/v1, without a user name, password or query: "
            "a secret belongs in engine.api_key."
        )
    return str(url)


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("engine.api_key has characters that no HTTP header can carry.")
    return key or None


async def _read_some(response: Response) -> bytes:
    """The body, cut after ``MAX_BODY_BYTES``."""
    body = bytearray()
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) >= MAX_BODY_BYTES:
                break
    return bytes(body[:MAX_BODY_BYTES])


def _too_long(said: str) -> ContextLengthError:
    return ContextLengthError(
        f"The conversation is too long for the model. {said} Shorten it, or ask for fewer max_tokens.",
        param="messages",
    )
