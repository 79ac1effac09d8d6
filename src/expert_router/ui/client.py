"""The page's way to the HTTP API: one question becomes a stream of small events.

It raises nothing for what a server or a network can do: a backend that is down, answers an error, breaks off or falls
silent ends the stream with one ``Failed`` whose sentence can be shown to a person. It knows nothing of Gradio.
"""

from __future__ import annotations

import json
import ssl
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import httpx2

from expert_router.errors import ConfigError
from expert_router.types import AUTO, Sources, Timings, Usage
from expert_router.ui.wire import parse_decision, parse_explanation, parse_served, parse_sources, parse_timings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from expert_router.types import Decision, Explanation, Message, Rating, Served

CONNECT_TIMEOUT_S = 4.0
SILENCE_TIMEOUT_S = 60.0
"""The longest silence that still counts as working; the API sends a comment every 15 s while it works."""

PATIENCE_S = 30
"""So long a person waits to be let in; programs come back by themselves, and are refused sooner."""

BROKEN_OFF = "The connection to the backend broke before the answer was complete."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Routed:
    """Who answers and why; comes before any text. ``experts`` is empty when nobody answers."""

    decision: Decision
    experts: tuple[str, ...]
    titles: Mapping[str, str]
    served: Mapping[str, Served] = field(default_factory=dict)
    """Which weights answer, by expert."""


@dataclass(frozen=True, slots=True)
class Section:
    """In an answer by several experts: the text from here on is this expert's."""

    expert: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete. ``truncated`` tells that it stopped at the token limit.

    ``cache`` is where it came from, by expert: ``hit`` for one that was given before.
    """

    timings: Timings
    usage: Usage | None
    truncated: bool = False
    cache: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing more will come. ``unreachable`` tells that no server was there, as opposed to one that said no."""

    message: str
    unreachable: bool = False


Event: TypeAlias = Routed | Section | Sources | Text | Done | Failed


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of the API's list of models: ``auto``, an expert, or ``general``."""

    name: str
    title: str
    description: str = ""
    examples: tuple[str, ...] = ()


class ChatClient:
    """Talks to one backend. Each call opens its own connection, so that closing a stream closes exactly that.

    ``key`` is sent with every call. ``certificate`` is the backend's own file, where it is on this machine: it is
    trusted whatever name it is for.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        key: str | None = None,
        certificate: Path | None = None,
    ) -> None:
        """Raises ``ConfigError`` when ``base_url`` is not the address of a web server."""
        self.base_url = _checked(base_url)
        self._connect_timeout_s = connect_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self.key = key
        self._tls = trusting(certificate) if certificate else httpx2.create_ssl_context()

    def with_key(self, key: str) -> ChatClient:
        """The same with another key; without one it keeps its own."""
        other = copy(self)
        other.key = key or self.key
        return other

    async def models(self) -> tuple[Model, ...] | Failed:
        """The names that ``stream_chat`` accepts, in the server's order."""

        def parse(response: httpx2.Response) -> tuple[Model, ...]:
            return tuple(_parse_model(entry) for entry in response.json()["data"])

        return await self._request("GET", "/v1/models", self._connect_timeout_s, parse)

    async def explain(self, question: str, history: Sequence[str] = ()) -> Explanation | Failed:
        """Why the question goes where it goes; ``history`` holds the earlier user turns, oldest first."""

        def parse(response: httpx2.Response) -> Explanation:
            return parse_explanation(response.json())

        asked = {"query": question, "history": list(history)}
        return await self._request("POST", "/v1/explain", self._silence_timeout_s, parse, asked)

    async def stream_chat(
        self, messages: Sequence[Message], model: str = AUTO, visitor: str = ""
    ) -> AsyncGenerator[Event]:
        """Ask, and yield ``Routed``, then ``Section``, ``Sources`` and ``Text``, then ``Done``; or ``Failed``, last.

        Each ``visitor`` has turns of its own where many wait. Closing the generator closes the connection, and that is
        what frees the engine.
        """
        body = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"user": visitor} if visitor else {}),
        }
        answering = False
        try:
            async with (
                self._connect(self._silence_timeout_s) as http,
                http.sse(
                    "/v1/chat/completions", method="POST", json=body, headers={"prefer": f"wait={PATIENCE_S}"}
                ) as source,
            ):
                if source.response.is_error:
                    await source.response.aread()
                    yield Failed(_refusal(source.response))
                    return
                reader = _ChunkReader()
                async for event in source:
                    answering = True
                    for parsed in reader.read(event.data):
                        yield parsed
                    if reader.ended:
                        return
                yield Failed(BROKEN_OFF)
        except httpx2.SSEError:
            yield self._not_understood()
        except httpx2.TransportError as error:
            yield self._failure(error, self._silence_timeout_s, answering=answering)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            yield self._not_understood()

    async def send_feedback(self, decision: str, rating: Rating | None = None, expert: str = "") -> Failed | None:
        """Say whether a decision was right, or who should have answered. ``Failed`` when it was not taken down."""
        said = {"decision": decision, "rating": rating, "expert": expert or None}
        return await self._request("POST", "/v1/feedback", self._connect_timeout_s, lambda _: None, said)

    async def _request(
        self,
        method: str,
        path: str,
        silence_timeout_s: float,
        parse: Callable[[httpx2.Response], T],
        body: dict[str, Any] | None = None,
    ) -> T | Failed:
        try:
            async with self._connect(silence_timeout_s) as http:
                response = await http.request(method, path, json=body)
            return Failed(_refusal(response)) if response.is_error else parse(response)
        except httpx2.TransportError as error:
            return self._failure(error, silence_timeout_s)
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._not_understood()

    def _connect(self, silence_timeout_s: float) -> httpx2.AsyncClient:
        timeout = httpx2.Timeout(silence_timeout_s, connect=self._connect_timeout_s)
        # A proxy of the environment must not stand between this page and a backend on the same machine.
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.AsyncClient(
            base_url=self.base_url, timeout=timeout, verify=self._tls, trust_env=False, headers=headers
        )

    def _failure(self, error: httpx2.TransportError, silence_timeout_s: float, *, answering: bool = False) -> Failed:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Failed(f"The backend at {self.base_url} cannot be reached.", unreachable=True)
        if isinstance(error, httpx2.TimeoutException):
            return Failed(
                f"The backend at {self.base_url} was silent for {silence_timeout_s:g} s, so the wait was given up.",
                unreachable=not answering,
            )
        if answering:
            return Failed(BROKEN_OFF)
        return Failed(f"The backend at {self.base_url} closed the connection without an answer.", unreachable=True)

    def _not_understood(self) -> Failed:
        return Failed(f"{self.base_url} answered something that is not this project's API. Is the address right?")


class _ChunkReader:
    """Turns the data lines of one stream into events; ``ended`` once nothing more will be read."""

    def __init__(self) -> None:
        self.ended = False
        self._timings = Timings()
        self._usage: Usage | None = None
        self._truncated = False
        self._cache: dict[str, str] = {}

    def read(self, data: str) -> Iterator[Event]:
        """Raises ``ValueError``, ``KeyError``, ``TypeError`` and the like on what is not the API's."""
        if data == "[DONE]":
            self.ended = True
            yield Done(self._timings, self._usage, self._truncated, self._cache)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.ended = True
            yield Failed(str(chunk["error"]["message"]))
            return
        yield from self._read_chunk(chunk)

    def _read_chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        extra = chunk.get("expert_router") or {}
        if "decision" in extra:
            yield _parse_routed(extra)
        if "section" in extra:
            yield Section(extra["section"])
        yield from parse_sources(extra.get("sources") or ())
        for choice in chunk["choices"][:1]:
            if text := choice["delta"].get("content"):
                yield Text(text)
            self._truncated = self._truncated or choice.get("finish_reason") == "length"
        if "timings" in extra:
            self._timings = parse_timings(extra["timings"])
        self._cache.update(extra.get("cache") or {})
        if usage := chunk.get("usage"):
            self._usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])


def trusting(certificate: Path) -> ssl.SSLContext:
    """Of that server alone, whatever name its certificate is for. Raises ``OSError``."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def _checked(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{base_url!r} is not the address of a backend: {error}.") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError(f"{base_url!r} is not the address of a backend; one looks like http://127.0.0.1:8000.")
    return base_url.rstrip("/")


def _parse_model(entry: dict[str, Any]) -> Model:
    about = entry.get("expert_router") or {}
    name = entry["id"]
    return Model(name, about.get("title") or name, about.get("description") or "", tuple(about.get("examples") or ()))


def _parse_routed(extra: dict[str, Any]) -> Routed:
    return Routed(
        parse_decision(extra["decision"]),
        tuple(extra["experts"]),
        dict(extra.get("titles") or {}),
        parse_served(extra.get("served") or {}),
    )


def _refusal(response: httpx2.Response) -> str:
    """The server's own sentence where it sent one, and when to come back where it said so."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The backend answered with status {response.status_code} and no explanation."
    wait = response.headers.get("retry-after", "")
    return f"{message} Try again in {wait} s." if wait.isdigit() and "Try again" not in message else message
