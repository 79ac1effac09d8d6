"""A question in, events out: route it, then let whoever was chosen answer.

It knows nothing of HTTP, terminals or models on disk. Closing a stream early closes the engine's stream under it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from expert_router.errors import EngineError, InvalidRequestError, UnknownModelError
from expert_router.routing.policy import forced
from expert_router.routing.splitting import split_question
from expert_router.serving.abstention import answered
from expert_router.serving.prompts import BARE_BASE_MODEL, clarification, expert_messages, refusal
from expert_router.serving.sections import Layout, sections
from expert_router.types import (
    AUTO,
    GENERAL,
    Accepted,
    Answer,
    Done,
    Message,
    Part,
    Routed,
    Section,
    Sources,
    Text,
    Timings,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.ports import DecisionLog, Engine, Knowledge, Router
    from expert_router.routing.policy import Policy
    from expert_router.serving.admission import Admission
    from expert_router.types import AnsweredPart, ChatRequest, Decision, Event, Expert, FinishReason, Found, Served

logger = logging.getLogger(__name__)


@dataclass
class _Progress:
    """What an answer has come to while it streams."""

    started: float = field(default_factory=time.perf_counter)
    route_s: float = 0.0
    first_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason = "stop"

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def done(self, parts: tuple[AnsweredPart, ...]) -> Done:
        timings = Timings(self.route_s, self.first_token_s, self.elapsed_s())
        return Done(self.finish_reason, Usage(self.prompt_tokens, self.completion_tokens), timings, parts)


@dataclass(frozen=True, slots=True)
class Library:
    """What the experts read from, and how many passages one is given."""

    knowledge: Knowledge
    passages: int


class Dispatcher:
    """``experts`` by name. The router's threshold rules are in ``policy``; ``admission`` bounds what runs at once.

    Without a ``library`` the experts answer from memory; with a ``log`` the decision on each request is kept.
    """

    def __init__(
        self,
        experts: Mapping[str, Expert],
        router: Router,
        policy: Policy,
        engine: Engine,
        admission: Admission,
        *,
        library: Library | None = None,
        log: DecisionLog | None = None,
    ) -> None:
        self.experts = {**experts, GENERAL: BARE_BASE_MODEL}
        self.titles = {expert.name: expert.title for expert in experts.values()}
        self.engine = engine
        self.router = router
        self.admission = admission
        self.log = log
        self._policy = policy
        self._library = library

    async def decide(self, query: str, history: Sequence[str] = ()) -> Decision:
        """Route one question; ``history`` holds the earlier user turns, oldest first."""
        scores = await asyncio.to_thread(self.router.score, query, history)
        return self._policy.decide(scores, self.router.name)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """``Routed`` first, then the text, ``Done`` last. Errors are raised where they happen.

        Raises ``UnknownModelError``, ``InvalidRequestError``, ``OverloadedError`` and whatever the engine raises.
        """
        progress = _Progress()
        decision = await self._decide_for(request)
        parts = await self._split(request.user_turns[-1], _answering(decision))
        progress.route_s = progress.elapsed_s()
        served = {part.expert: self.engine.served(self.experts[part.expert]) for part in parts}
        adapters = {name: each.adapter for name, each in served.items()}
        logger.info("routed", extra={"decision": decision.kind, "experts": tuple(served), "adapters": adapters})
        decision = self._logged(request, decision, served)
        yield Routed(decision, parts, progress.route_s, served)
        layout = Layout(parts)
        if not parts:
            yield Text(clarification(decision, self.titles) if decision.kind == "clarify" else refusal(self.titles))
        else:
            async with self.admission.slot(), aclosing(self._answer(request, parts, progress)) as events:
                async for event in events:
                    if event.text and not isinstance(event, Section):
                        progress.first_token_s = progress.first_token_s or progress.elapsed_s()
                    layout.add(event)
                    yield event
        yield progress.done(layout.answered())

    async def ask(self, request: ChatRequest) -> Answer:
        """The whole answer at once."""
        routed: Routed | None = None
        sources: list[Sources] = []
        pieces: list[str] = []
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                pieces.append(event.text)
                if isinstance(event, Routed):
                    routed = event
                elif isinstance(event, Sources):
                    sources.append(event)
        if routed is None or not isinstance(event, Done):
            raise EngineError("The answer ended before it was whole.")
        text = "".join(pieces)
        query = request.user_turns[-1]
        return Answer(
            query,
            text,
            routed.decision,
            routed.experts,
            event.finish_reason,
            event.usage,
            event.timings,
            tuple(sources),
            routed.served,
            event.parts,
        )

    async def close(self) -> None:
        try:
            await self.engine.close()
            self.router.close()
        finally:
            if self.log is not None:
                await asyncio.to_thread(self.log.close)

    async def _decide_for(self, request: ChatRequest) -> Decision:
        turns = request.user_turns
        if not turns or request.messages[-1].role != "user":
            raise InvalidRequestError("The conversation must end with a message from the user.", param="messages")
        if not turns[-1].strip():
            raise InvalidRequestError("The question is empty.", param="messages")
        if request.model == AUTO:
            return await self.decide(turns[-1], turns[:-1])
        if request.model not in self.experts:
            known = ", ".join([AUTO, *self.experts])
            raise UnknownModelError(f"There is no model {request.model!r}. Known: {known}.", param="model")
        return forced(request.model, self.experts[request.model].title)

    def _logged(self, request: ChatRequest, decision: Decision, served: Mapping[str, Served]) -> Decision:
        """The decision with its id in the log."""
        if self.log is None:
            return decision
        return replace(decision, id=self.log.record(request.user_turns, decision, served, self.router.version))

    async def _split(self, question: str, names: tuple[str, ...]) -> tuple[Part, ...]:
        """Several experts are asked their own parts of the question, where it can be told apart."""
        if len(names) < 2:  # noqa: PLR2004 - several
            return tuple(Part(name, question) for name in names)
        asked = await asyncio.to_thread(split_question, question, names, lambda text: self.router.score(text).experts)
        return tuple(Part(expert, part) for expert, part in asked.items())

    def _answer(self, request: ChatRequest, parts: tuple[Part, ...], progress: _Progress) -> AsyncGenerator[Event]:
        streams = [self._answer_part(request, part, parts, progress) for part in parts]
        return sections(parts, self.titles, streams) if len(parts) > 1 else streams[0]

    async def _answer_part(
        self, request: ChatRequest, part: Part, parts: tuple[Part, ...], progress: _Progress
    ) -> AsyncGenerator[Event]:
        expert = self.experts[part.expert]
        others = [
            self.experts[other.expert] for other in parts if other is not part and other.question == part.question
        ]
        found = await self._look_up(expert, [*request.user_turns[:-1], part.question])
        if found:
            yield Sources(expert.name, found)
        conversation = [*request.messages[:-1], Message("user", part.question)]
        messages = expert_messages(expert, conversation, others, found)
        async with aclosing(answered(self.engine, expert, messages, request.params, found)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    yield Text(chunk.text)
                elif chunk.finish_reason is None:
                    yield Accepted()
                if chunk.usage:
                    progress.prompt_tokens += chunk.usage.prompt_tokens
                    progress.completion_tokens += chunk.usage.completion_tokens
                if chunk.finish_reason == "length":
                    progress.finish_reason = "length"

    async def _look_up(self, expert: Expert, turns: Sequence[str]) -> tuple[Found, ...]:
        if self._library is None or expert.knowledge is None:
            return ()
        library = self._library
        found = await asyncio.to_thread(library.knowledge.search, expert.name, turns[-1], turns[:-1], library.passages)
        return tuple(found)


def _answering(decision: Decision) -> tuple[str, ...]:
    """Who generates text: the chosen experts, the base model, or nobody."""
    if decision.kind == "general":
        return (GENERAL,)
    return () if decision.kind in {"clarify", "refused"} else decision.experts
