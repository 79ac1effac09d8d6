"""An engine in another process: vLLM or any server that speaks OpenAI's chat completions over HTTP.

The conversation goes out as it comes in (chat template and tokenizer are the server's), the answer streams back as
server-sent events. What the server complains about arrives as the package's typed errors, without the API key.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic_core import to_json

from expert_router.engines.remote.completions import request_body
from expert_router.engines.remote.names import ServedModel, served_model_names
from expert_router.engines.remote.upstream import AttemptError, Upstream
from expert_router.engines.slots import SlotCounters
from expert_router.errors import NotReadyError
from expert_router.types import Served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message

__all__ = ["OpenAIHTTPEngine", "served_model_names"]


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
        self._upstream = Upstream(base_url, api_key, connect_timeout_s, read_timeout_s)
        self._model_of = model_of
        self._revision = revision
        self._slots = SlotCounters()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``OverloadedError`` when the server turns the request away."""
        model = self._model_of(expert)
        last: Chunk | None = None
        with self._slots.slot():
            try:
                async with aclosing(
                    self._upstream.stream(model, to_json(request_body(model, messages, params)))
                ) as chunks:
                    async for chunk in chunks:
                        if chunk.finish_reason:
                            last = chunk
                        else:
                            yield chunk
            except AttemptError as failed:
                raise failed.error from failed.__cause__
        assert last is not None  # or an error was raised
        yield last

    def served(self, expert: Expert) -> Served:
        model = ServedModel.of(expert, self._model_of(expert))
        return Served(model.base, None if model.adapter is None else model.adapter.sha256)

    def identity(self, expert: Expert) -> str | None:
        """A name alone does not tell which weights, template and settings are behind it now."""
        return self._revision and repr((self._upstream.address, self._model_of(expert), self._revision))

    async def warm_up(self, expert: Expert) -> None:
        """Check that the server serves the expert's model. Raises ``NotReadyError`` with what is missing."""
        model = ServedModel.of(expert, self._model_of(expert))
        try:
            served = await self._upstream.models()
        except AttemptError as failed:
            raise NotReadyError(failed.error.message) from failed
        if model.name not in served:
            said = self._upstream.quoted(", ".join(served)) or "nothing"
            raise NotReadyError(
                f"{self._upstream.address} does not serve {model.name!r}; it serves {said}. {model.how_to_serve}"
            )

    def status(self) -> dict[str, object]:
        return {"engine": self.name, "address": self._upstream.address, **asdict(self._slots)}

    async def close(self) -> None:
        """Close all connections; streams that still run end with ``EngineError``."""
        self._upstream.close()
