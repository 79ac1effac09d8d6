"""A question in, events out: route it, then let whoever was chosen answer.

It knows nothing of HTTP, terminals or models on disk. Closing a stream early closes the engine's stream under it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_router.errors import EngineError, InvalidRequestError, UnknownModelError
from expert_router.routing.policy import forced
from expert_router.serving.abstention import answered
from expert_router.serving.prompts import BARE_BASE_MODEL, clarification, expert_messages, refusal
from expert_router.types import AUTO, GENERAL, Accepted, Answer, Done, Routed, Section, Sources, Text, Timings, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.ports import Engine, Knowledge, Router
    from expert_router.routing.policy import Policy
    from expert_router.serving.admission import Admission
    from expert_router.types import ChatRequest, Decision, Event, Expert, FinishReason, Found

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

    def done(self) -> Done:
        timings = Timings(self.route_s, self.first_token_s, self.elapsed_s())
        return Done(self.finish_reason, Usage(self.prompt_tokens, self.completion_tokens), timings)


@dataclass(frozen=True, slots=True)
class Library:
    """What the experts read from, and how many passages one is given."""

    knowledge: Knowledge
    passages: int


class Dispatcher:
    """``experts`` by name. The router's threshold rules are in ``policy``; ``admission`` bounds what runs at once.

    Without a ``library`` the experts answer from memory.
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
    ) -> None:
        self.experts = {**experts, GENERAL: BARE_BASE_MODEL}
        self.titles = {expert.name: expert.title for expert in experts.values()}
        self.engine = engine
        self.router = router
        self.admission = admission
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
        names = _answering(decision)
        progress.route_s = progress.elapsed_s()
        served = {name: self.engine.served(self.experts[name]) for name in names}
        adapters = {name: each.adapter for name, each in served.items()}
        logger.info("routed", extra={"decision": decision.kind, "experts": names, "adapters": adapters})
        yield Routed(decision, names, progress.route_s, served)
        if not names:
            yield Text(clarification(decision, self.titles) if decision.kind == "clarify" else refusal(self.titles))
        else:
            async with self.admission.slot(), aclosing(self._answer(request, names, progress)) as events:
                async for event in events:
                    yield event
        yield progress.done()

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
        )

    async def close(self) -> None:
        await self.engine.close()
        self.router.close()

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

    async def _answer(self, request: ChatRequest, names: tuple[str, ...], progress: _Progress) -> AsyncGenerator[Event]:
        experts = [self.experts[name] for name in names]
        for number, expert in enumerate(experts):
            others = [other for other in experts if other is not expert]
            if others:
                gap = "\n\n" if number else ""
                yield Section(expert.name, f"{gap}**{expert.title}**\n\n")
            found = await self._look_up(expert, request.user_turns)
            if found:
                yield Sources(expert.name, found)
            messages = expert_messages(expert, request.messages, others, found)
            async with aclosing(answered(self.engine, expert, messages, request.params, found)) as chunks:
                async for chunk in chunks:
                    if chunk.text:
                        progress.first_token_s = progress.first_token_s or progress.elapsed_s()
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
