"""An engine in other processes: one or several servers that speak OpenAI's chat completions over HTTP, as vLLM does.

The conversation goes out as it comes in (chat template and tokenizer are the server's), the answer streams back as
server-sent events. What the servers complain about arrives as the package's typed errors, without the API key.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic_core import to_json

from expert_router.engines.http_client import NO_HEADERS
from expert_router.engines.remote.completions import request_body
from expert_router.engines.remote.names import ServedModel, served_model_names
from expert_router.engines.remote.pool import CHECK_INTERVAL_S, UpstreamPool
from expert_router.engines.remote.upstream import Upstream
from expert_router.engines.slots import SlotCounters
from expert_router.errors import ConfigError
from expert_router.types import Served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message

__all__ = ["OpenAIHTTPEngine", "served_model_names"]


class OpenAIHTTPEngine:
    """``addresses`` are those of servers that serve alike, each up to and including ``/v1``; one may stand for itself.

    ``model_of`` names the servers' model for an expert. ``connect_timeout_s`` bounds the wait for a connection,
    ``read_timeout_s`` the silence before and between the pieces of an answer. ``revision`` stands for what the servers'
    names mean: their weights, templates and settings. The rest is the pool's. Proxies and certificates are not taken
    from the environment. Raises ``ConfigError`` for an address or a key that cannot be sent.
    """

    name = "openai_http"

    def __init__(
        self,
        addresses: str | Sequence[str],
        api_key: str | None,
        model_of: Callable[[Expert], str],
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 60.0,
        *,
        revision: str | None = None,
        check_interval_s: float = CHECK_INTERVAL_S,
        draining: Callable[[], Collection[str]] = frozenset,
        wanted: Callable[[], Collection[str]] | None = None,
    ) -> None:
        several = [addresses] if isinstance(addresses, str) else addresses
        upstreams = [Upstream(address, api_key, connect_timeout_s, read_timeout_s) for address in several]
        self._addresses = tuple(upstream.address for upstream in upstreams)
        if len(set(self._addresses)) < max(1, len(upstreams)):
            raise ConfigError("engine.upstreams needs addresses that differ: " + ", ".join(self._addresses))
        self._pool = UpstreamPool(upstreams, check_interval_s=check_interval_s, draining=draining, wanted=wanted)
        self._model_of = model_of
        self._revision = revision
        self._slots = SlotCounters()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``OverloadedError`` when the servers turn the request away."""
        model = ServedModel.of(expert, self._model_of(expert))
        last: Chunk | None = None
        with self._slots.slot():
            body = to_json(request_body(model.name, messages, params))
            headers = params.trace.headers() if params.trace is not None else NO_HEADERS
            async with aclosing(self._pool.stream(model, body, headers)) as chunks:
                async for chunk in chunks:
                    if chunk.finish_reason:
                        last = chunk  # given when the slot is free
                    else:
                        yield chunk
        assert last is not None  # or an error was raised
        yield last

    def served(self, expert: Expert) -> Served:
        model = ServedModel.of(expert, self._model_of(expert))
        return Served(model.base, None if model.adapter is None else model.adapter.sha256)

    def identity(self, expert: Expert) -> str | None:
        """A name alone does not tell which weights, template and settings are behind it now."""
        return self._revision and repr((self._addresses, self._model_of(expert), self._revision))

    async def warm_up(self, expert: Expert) -> None:
        """Check that the expert's model is served, and load its adapter. Raises ``NotReadyError``."""
        await self._pool.warm_up(ServedModel.of(expert, self._model_of(expert)))

    async def answers(self) -> bool:
        """Whether one of the servers says now what it serves."""
        return await self._pool.check()

    def status(self) -> dict[str, object]:
        one = {"address": self._addresses[0]} if len(self._addresses) == 1 else {}
        return {"engine": self.name, **one, **asdict(self._slots), **self._pool.status()}

    async def close(self) -> None:
        """Close all connections; streams that still run end with ``EngineError``."""
        await self._pool.close()
