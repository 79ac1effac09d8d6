"""The wire: OpenAI's chat completion objects (https://platform.openai.com/docs/api-reference/chat) and our own.

pydantic stops here; inside, frozen dataclasses cross every boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticSerializationError

from expert_router.errors import FeedbackError, InvalidRequestError
from expert_router.live.proposal import Proposal, TaughtExample
from expert_router.types import AUTO, GENERAL, ChatRequest, Feedback, GenerationParams, Message, Rating

if TYPE_CHECKING:
    from collections.abc import Collection

    from expert_router.api.deps import Caller


class RequestBody(BaseModel):
    """Strict: "5" is not a number and "yes" not a boolean."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="after")
    def _refuse_half_characters(self) -> Self:
        """JSON's escapes can spell a lone surrogate, which neither a tokenizer nor an answer can carry."""
        try:
            self.model_dump_json()
        except PydanticSerializationError:
            raise InvalidRequestError("The text holds half of a surrogate pair.") from None
        return self


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _refuse_other_parts(cls, content: Any) -> Any:
        """By name: of a union pydantic says first that a list is no string."""
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError(
                    "text_only", "Only parts of the type text are read, not {kind}", {"kind": kind}
                )
        return content

    def to_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(RequestBody):
    include_usage: bool = False


class ChatCompletionRequest(RequestBody):
    """Parameters that would change the answer and are not supported are refused, never ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "auto", "messages": [{"role": "user", "content": "What is REM sleep?"}], "stream": False}
            ]
        }
    )

    model: str = Field(default=AUTO, description="auto lets the router choose; an expert's name or general forces it")
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, description="0, the default, is deterministic")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    ignore_eos: bool = Field(default=False, description="vLLM's: go on to max_tokens where the model would end")
    user: str | None = Field(default=None, description="who of the sender's users asks: each has turns of their own")
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    logit_bias: dict[str, Any] | None = None
    functions: list[Any] | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> ChatCompletionRequest:
        asked = {
            "n": self.n not in {None, 1},
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
            "logprobs": bool(self.logprobs),
            "logit_bias": bool(self.logit_bias),
            "functions": bool(self.functions),
            "tools": bool(self.tools),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
        }
        if unsupported := [name for name, used in asked.items() if used]:
            raise InvalidRequestError(f"Not supported by this server: {', '.join(unsupported)}.", param=unsupported[0])
        return self

    def to_request(self, default_max_tokens: int, caller: Caller) -> ChatRequest:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > MAX_STOP_SEQUENCES:
            raise InvalidRequestError(f"At most {MAX_STOP_SEQUENCES} stop sequences are possible.", param="stop")
        params = GenerationParams(
            max_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
            cache=caller.cache,
            ignore_eos=self.ignore_eos,
        )
        client = f"{caller.sender} {self.user}" if self.user else caller.sender
        messages = tuple(message.to_message() for message in self.messages)
        return ChatRequest(messages, self.model, params, client, caller.wait_s, caller.expected_wait_s)


MAX_STOP_SEQUENCES = 4


class QueryRequest(RequestBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "Who built the first car, and when?"}]})

    query: str = Field(min_length=1)


class LoggedId(BaseModel):
    id: str


class LoggedQuery(BaseModel):
    decision: LoggedId


class QueryResponse(BaseModel):
    """The specification's object; ``classification`` names who answered, joined by a comma when several did.

    ``expert_router`` is there when decisions are logged.
    """

    query: str
    classification: str
    response: str
    scores: dict[str, float] | None
    expert_router: LoggedQuery | None = None


class FeedbackRequest(RequestBody):
    """At least one of ``rating`` and ``expert``. Nothing else that is sent is kept."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"decision": "5f2c9d0b7a413e68", "rating": "down", "expert": "cars"}]}
    )

    decision: str = Field(min_length=1, max_length=64, description="expert_router.decision.id of the answer")
    rating: Rating | None = Field(default=None, description="whether who answered was right")
    expert: str | list[str] | None = Field(default=None, description="who should have answered; general: no expert")

    def to_feedback(self, experts: Collection[str]) -> Feedback:
        """``experts`` are those there are. Raises ``FeedbackError``."""
        if self.expert is None:
            if self.rating is None:
                raise FeedbackError("Send a rating (up or down), an expert, or both.", param="rating")
            return Feedback(self.rating)
        named = [self.expert] if isinstance(self.expert, str) else list(dict.fromkeys(self.expert))
        if named == [GENERAL]:
            return Feedback(self.rating, ())
        if not named or not set(named) <= set(experts):
            known = ", ".join(experts)
            raise FeedbackError(f"expert takes one or more of {known}, or {GENERAL} alone.", param="expert")
        return Feedback(self.rating, tuple(named))


class ExplainRequest(RequestBody):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "Who built the first car, and when?", "nearest": 3}]}
    )

    query: str = Field(min_length=1)
    history: list[str] = Field(default=[], description="the earlier user turns, oldest first")
    nearest: int = Field(default=5, ge=0, le=50, description="how many of the router's examples to name")


class ExampleBody(RequestBody):
    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1)
    answer: str = ""
    key: str = ""


class PassageBody(RequestBody):
    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1)
    text: str = Field(min_length=1)


class AddExpertRequest(RequestBody):
    """At least ``examples`` or a ``description``; twenty examples are enough, fewer are answered with a warning."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "gardening", "examples": ["When do I prune roses?", "why are my leaves yellow"]}]
        },
    )

    name: str = Field(description="lower-case letters, digits and _")
    title: str = ""
    description: str = ""
    instructions: str = Field(default="", description="what the model is told to be")
    examples: list[str | ExampleBody] = Field(default=[], description="questions that it should answer")
    knowledge: list[PassageBody] = Field(default=[], description="what it reads before it answers")
    replace: bool = Field(default=False, description="in place of the expert of this name")

    def to_proposal(self) -> Proposal:
        examples = (
            TaughtExample(each) if isinstance(each, str) else TaughtExample(each.question, each.answer, each.key)
            for each in self.examples
        )
        text = "\n\n".join(f"## {' '.join(each.title.split())}\n\n{each.text}" for each in self.knowledge)
        knowledge = {"knowledge.md": (text + "\n").encode()} if text else {}
        return Proposal(self.name, self.title, self.description, self.instructions, tuple(examples), knowledge)


class RollbackRequest(RequestBody):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 1}]})

    version: int | None = Field(default=None, ge=0, description="default: the one before; 0 is as shipped")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
