"""An engine in another process: vLLM or any server that speaks OpenAI's chat completions over HTTP.

The conversation goes out as it comes in (chat template and tokenizer are the server's), the answer streams back as
server-sent events. What the server complains about arrives as the package's typed errors, without the API key.
"""

from __future__ import annotations

import json
import math
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx2
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from expert_router.engines.events import EventParser
from expert_router.engines.http_client import (
    BrokenAnswerError,
    ConnectError,
    ConnectTimeoutError,
    HTTPClient,
    SilenceError,
)
from expert_router.engines.slots import SlotCounters
from expert_router.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    EngineTimeoutError,
    ExpertRouterError,
    NotReadyError,
    OverloadedError,
)
from expert_router.types import Chunk, Served, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from expert_router.engines.events import Event
    from expert_router.engines.http_client import Response
    from expert_router.types import Adapter, Expert, FinishReason, GenerationParams, Message

DONE = b"[DONE]"
EVENT_STREAM = "text/event-stream"
MAX_BODY_BYTES = 1024**2
"""Read of an error or a model list; the rest is left."""
MAX_QUOTE = 300
"""Characters of the server's own words in an error text."""
DEFAULT_RETRY_AFTER_S = 1.0
END_OF_BODY_TIMEOUT_S = 0.05
ADAPTER_HASH_DIGITS = 12

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_CONTEXT_WORDINGS = (
    "maximum context length",  # OpenAI, vLLM
    "longer than the maximum model length",  # vLLM, from its input processor
    "longer than the model's context length",  # SGLang
    "exceeds the available context size",  # llama.cpp
)


def served_model_names(base_model: str) -> Callable[[Expert], str]:
    """How a server is expected to name what answers for an expert: ``sleep@0123456789ab``, or its base model.

    The adapter's hash is part of the name, so that a server which still holds an older adapter is found out
    instead of answering with it. ``base_model`` serves experts that name no base of their own, and "general".
    """

    def name_of(expert: Expert) -> str:
        base = expert.base_model or base_model
        adapter = expert.adapter_for(base)
        return base if adapter is None else f"{expert.name}@{adapter.sha256[:ADAPTER_HASH_DIGITS]}"

    return name_of


class OpenAIHTTPEngine:
    """``base_url`` is the address up to and including ``/v1``; ``model_of`` names the server's model for an expert.

    ``connect_timeout_s`` bounds the wait for a connection, ``read_timeout_s`` the silence before and between the
    pieces of an answer. ``revision`` stands for what the server's names mean: its weights, templates and settings.
    Proxies and certificates are not taken from the environment. Raises ``ConfigError`` for an address or a key that
    cannot be sent.
    """

    name = "openai_http"

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model_of: Callable[[Expert], str],
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 60.0,
        *,
        revision: str | None = None,
    ) -> None:
        self._address = _checked_address(base_url)
        self._api_key = _checked_key(api_key)
        self._model_of = model_of
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._revision = revision
        self._slots = SlotCounters()
        self._client = HTTPClient(
            httpx2.URL(self._address),
            {"authorization": f"Bearer {self._api_key}"} if self._api_key else {},
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``OverloadedError`` when the server turns the request away.

        Closing the iterator closes the connection, which is how these servers notice that nobody listens any more.
        Without the server's count, ``completion_tokens`` is the number of pieces and ``prompt_tokens`` 0: not known.
        """
        model = self._model_of(expert)
        answer = _Answer()
        with self._slots.slot(), self._typed_errors():
            body = to_json(_request_body(model, messages, params))
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
            last = answer.last_chunk(self._address)
        yield last

    def served(self, expert: Expert) -> Served:
        model = self._model_of(expert)
        named = _adapter_named(expert, model)
        return Served(model) if named is None else Served(named[0], named[1].sha256)

    def identity(self, expert: Expert) -> str | None:
        """A name alone does not tell which weights, template and settings are behind it now."""
        return self._revision and repr((self._address, self._model_of(expert), self._revision))

    async def warm_up(self, expert: Expert) -> None:
        """Check that the server serves the expert's model. Raises ``NotReadyError`` with what is missing."""
        model = self._model_of(expert)
        try:
            served = await self._served_models(model)
        except (EngineError, OverloadedError) as error:
            raise NotReadyError(error.message) from error
        if model not in served:
            raise NotReadyError(
                f"{self._address} does not serve {model!r}; it serves {self._quoted(', '.join(served)) or 'nothing'}. "
                + _how_to_serve(expert, model)
            )

    def status(self) -> dict[str, object]:
        return {"engine": self.name, "address": self._address, **asdict(self._slots)}

    async def close(self) -> None:
        """Close all connections; streams that still run end with ``EngineError``."""
        self._client.close()

    async def _served_models(self, model: str) -> list[str]:
        with self._typed_errors():
            async with self._client.request("GET", "models") as response:
                await self._refuse_unless_ok(response, model)
                body = await _read_some(response)
        try:
            return [entry.id for entry in _ModelList.model_validate_json(body).data]
        except ValidationError:
            raise EngineError(
                f"{self._address}/models is not a list of models: is engine.base_url an OpenAI-compatible server's?"
            ) from None

    async def _events(self, response: Response) -> AsyncGenerator[Event]:
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != EVENT_STREAM:
            said = self._quoted(content_type) or "nothing"
            raise EngineError(
                f"{self._address} was asked for {EVENT_STREAM} and sends {said}. Is it OpenAI-compatible?"
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

    async def _refuse_unless_ok(self, response: Response, model: str) -> None:
        if response.status != httpx2.codes.OK:
            raise self._refusal(response, _Complaint.read(await _read_some(response)), model)

    def _refusal(self, response: Response, complaint: _Complaint, model: str) -> ExpertRouterError:
        """The error for an answer that is not 200."""
        status, said = response.status, self._quoted(complaint.message)
        where = f"{self._address} answered HTTP {status}"
        if complaint.is_context_length and httpx2.codes.is_client_error(status):
            return _too_long(said)
        match status:
            case 401 | 403:  # the server's words may quote a part of the key
                return EngineError(f"{where}: it does not accept the API key. Set engine.api_key to one that it knows.")
            case 404:
                return EngineError(
                    f"{where}: it has no model {model!r}, or engine.base_url is not its API (most end in /v1). {said}"
                )
            case 429 | 503:
                return OverloadedError(
                    f"{where}: it takes no more requests now; try again. {said}",
                    retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
                )
            case 408 | 504:
                return EngineTimeoutError(f"{where}: it was too slow. {said}")
            case _:
                return EngineError(f"{where} for model {model!r}. {said}")

    def _parsed(self, event: Event, model: str, answer: _Answer) -> _Event:
        """Raises what an error event says, and ``EngineError`` for an event that is not a piece of a completion."""
        if not event.data.strip():
            return _Event()
        if event.kind != b"error":
            try:
                parsed = _Event.model_validate_json(event.data)
            except ValidationError:
                raise EngineError(
                    f"{self._address} sent an event that is not a chat completion: {self._quoted(event.text)}"
                ) from None
            if not parsed.is_error:
                return parsed
        complaint = _Complaint.read(event.data)
        said = self._quoted(complaint.message)
        if complaint.is_context_length and not answer.pieces:
            raise _too_long(said)
        raise EngineError(f"{self._address} failed while model {model!r} was answering. {said}")

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Turn what the HTTP client raises into the package's errors."""
        if self._client.is_closed:
            raise EngineError("The engine is closed.")
        try:
            yield
        except ConnectTimeoutError as error:
            raise EngineTimeoutError(
                f"{self._address} did not accept a connection within {self._connect_timeout_s:g} s. "
                "Check that it is up and reachable, or set engine.base_url."
            ) from error
        except SilenceError as error:
            raise EngineTimeoutError(
                f"{self._address} was silent for {self._read_timeout_s:g} s. "
                "Check its load, or raise engine.read_timeout_s."
            ) from error
        except ConnectError as error:
            raise EngineError(
                f"{self._address} cannot be reached ({self._quoted(str(error))}). Start it, or set engine.base_url."
            ) from error
        except BrokenAnswerError as error:
            reason = self._quoted(str(error))
            raise EngineError(f"The answer of {self._address} broke off or is not valid: {reason}") from error

    def _quoted(self, text: str) -> str:
        """The server's own words, fit for an error text: on one line, short, without the API key."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        text = " ".join(text.split())
        return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(BaseModel):
    """What is read of a ``chat.completion.chunk``, or of an error in its place."""

    object: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None

    @property
    def is_error(self) -> bool:
        return self.error is not None or self.object == "error"


class _Model(BaseModel):
    id: str


class _ModelList(BaseModel):
    data: list[_Model]


@dataclass(slots=True)
class _Answer:
    """What has come of one answer so far. ``done`` means that the server said so itself."""

    pieces: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    done: bool = False

    def add(self, event: _Event) -> str:
        """Take note of an event; the text in it."""
        if event.usage is not None:
            self.usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        text = ""
        for choice in event.choices[:1]:
            self.finish_reason = choice.finish_reason or self.finish_reason
            text = (choice.delta and choice.delta.content) or ""
        self.pieces += bool(text)
        return text

    def last_chunk(self, address: str) -> Chunk:
        """Raises ``EngineError`` when the answer is not whole."""
        whole = self.finish_reason is not None or (self.done and self.pieces > 0)
        if not whole:
            raise EngineError(f"{address} ended the answer before it was complete. Check its log.")
        if self.finish_reason in {"abort", "error"}:
            raise EngineError(f"{address} gave the answer up (finish_reason {self.finish_reason}). Check its log.")
        reason: FinishReason = "length" if self.finish_reason == "length" else "stop"
        return Chunk("", reason, self.usage or Usage(0, self.pieces))


@dataclass(frozen=True, slots=True)
class _Complaint:
    """A server's error, from any of the shapes in use: OpenAI's object, one level flatter, or plain text."""

    message: str
    labels: frozenset[str] = frozenset()
    """Its code and type."""

    @classmethod
    def read(cls, body: bytes | str) -> _Complaint:
        try:
            error: Any = json.loads(body)
        except (ValueError, RecursionError):
            return cls(body if isinstance(body, str) else body.decode("utf-8", "replace"))
        if isinstance(error, dict):
            error = error.get("error") or error
        if not isinstance(error, dict):
            return cls(str(error))
        message = error.get("message") or error.get("detail") or json.dumps(error)
        return cls(str(message), frozenset(str(error.get(key)) for key in ("code", "type")))

    @property
    def is_context_length(self) -> bool:
        said = self.message.lower()
        return not _CONTEXT_CODES.isdisjoint(self.labels) or any(wording in said for wording in _CONTEXT_WORDINGS)


def _checked_address(base_url: str) -> str:
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


def _request_body(model: str, messages: Sequence[Message], params: GenerationParams) -> dict[str, object]:
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop:
        body["stop"] = list(params.stop)
    if params.ignore_eos:  # vLLM's own; others refuse what they do not know
        body["ignore_eos"] = True
    return body


async def _read_some(response: Response) -> bytes:
    """The body, cut after ``MAX_BODY_BYTES``."""
    body = bytearray()
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) >= MAX_BODY_BYTES:
                break
    return bytes(body[:MAX_BODY_BYTES])


def _retry_after_s(header: str) -> float:
    """Seconds from a ``Retry-After`` of either form; the default when there is none or it is not readable."""
    try:
        seconds = float(header)
    except ValueError:
        seconds = _seconds_until(header)
    return seconds if math.isfinite(seconds) and seconds >= 0 else DEFAULT_RETRY_AFTER_S


def _seconds_until(http_date: str) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
    except ValueError:
        return math.nan
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _too_long(said: str) -> ContextLengthError:
    return ContextLengthError(
        f"The conversation is too long for the model. {said} Shorten it, or ask for fewer max_tokens.",
        param="messages",
    )


def _adapter_named(expert: Expert, model: str) -> tuple[str, Adapter] | None:
    """The expert's adapter whose hash the model's name ends with, and its base."""
    matches = (pair for pair in expert.adapters.items() if model.endswith(f"@{pair[1].sha256[:ADAPTER_HASH_DIGITS]}"))
    return next(matches, None)


def _how_to_serve(expert: Expert, model: str) -> str:
    named = _adapter_named(expert, model)
    if named is not None:
        return f"Load the adapter there (vLLM: --enable-lora --lora-modules {model}={named[1].path})."
    return f"Serve it there (vLLM: --served-model-name {model}), or set engine.base_model to one that it serves."
