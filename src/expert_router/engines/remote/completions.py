"""OpenAI's chat completions on the wire: what is sent, and what is read of the events, errors and lists that come."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from expert_router.types import Chunk, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import FinishReason, GenerationParams, Message

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_CONTEXT_WORDINGS = (
    "maximum context length",  # OpenAI, vLLM
    "longer than the maximum model length",  # vLLM, from its input processor
    "longer than the model's context length",  # SGLang
    "exceeds the available context size",  # llama.cpp
)


def request_body(model: str, messages: Sequence[Message], params: GenerationParams) -> dict[str, object]:
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


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class CompletionEvent(BaseModel):
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


class ModelList(BaseModel):
    data: list[_Model]

    @property
    def names(self) -> list[str]:
        return [model.id for model in self.data]


@dataclass(slots=True)
class PartialAnswer:
    """What has come of one answer so far. ``done`` means that the server said so itself."""

    pieces: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    done: bool = False

    def add(self, event: CompletionEvent) -> str:
        """Take note of an event; the text in it."""
        if event.usage is not None:
            self.usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        text = ""
        for choice in event.choices[:1]:
            self.finish_reason = choice.finish_reason or self.finish_reason
            text = (choice.delta and choice.delta.content) or ""
        self.pieces += bool(text)
        return text

    @property
    def missing(self) -> str | None:
        """Why the answer is not whole, as far as it has come."""
        if self.finish_reason is None and not (self.done and self.pieces):
            return "ended the answer before it was complete"
        if self.finish_reason in {"abort", "error"}:
            return f"gave the answer up (finish_reason {self.finish_reason})"
        return None

    def last_chunk(self) -> Chunk:
        reason: FinishReason = "length" if self.finish_reason == "length" else "stop"
        return Chunk("", reason, self.usage or Usage(0, self.pieces))


@dataclass(frozen=True, slots=True)
class Complaint:
    """A server's error, from any of the shapes in use: OpenAI's object, one level flatter, or plain text."""

    message: str
    labels: frozenset[str] = frozenset()
    """Its code and type."""

    @classmethod
    def read(cls, body: bytes | str) -> Complaint:
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


def retry_after_s(header: str) -> float | None:
    """Seconds from a ``Retry-After`` of either form; ``None`` when there is none or it is not readable."""
    try:
        seconds = float(header)
    except ValueError:
        seconds = _seconds_until(header)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(http_date: str) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
    except ValueError:
        return math.nan
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
