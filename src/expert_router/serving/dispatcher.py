"""A question in, events out: route it, then let whoever was chosen answer.

It knows nothing of HTTP, terminals or models on disk. Closing a stream early closes the engine's stream under it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from expert_router.caching.similar import replayed
from expert_router.errors import EngineError
from expert_router.serving.abstention import answered
from expert_router.serving.progress import Progress
from expert_router.serving.prompts import clarification, expert_messages, refusal
from expert_router.serving.sections import Layout, sections
from expert_router.types import (
    Accepted,
    Answer,
    Done,
    Message,
    Part,
    Routed,
    Section,
    Sources,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.ports import DecisionLog, Engine, RequestObserver
    from expert_router.serving.admission import Admission
    from expert_router.serving.asked_before import AskedBefore
    from expert_router.serving.deployment import Deployment
    from expert_router.serving.progress import PartProgress
    from expert_router.serving.repeating import Repeating
    from expert_router.types import ChatRequest, Chunk, Event, Expert, Found, Ticket


class Dispatcher:
    """``deployed`` may be replaced at any time; requests that run keep what they began with.

    ``admission`` is the door that the ``engine`` stands behind; with a ``log`` the decision on each request is kept;
    with ``repeating`` an answer may be one to the same question in other words. ``observers`` learn what became of it.
    With ``asked_before``, where answers are kept, what may be one of them is not refused before it was looked for.
    """

    def __init__(
        self,
        deployed: Deployment,
        engine: Engine,
        admission: Admission,
        *,
        log: DecisionLog | None = None,
        repeating: Repeating | None = None,
        observers: Sequence[RequestObserver] = (),
        asked_before: AskedBefore | None = None,
    ) -> None:
        self.deployed = deployed
        self.engine = engine
        self.admission = admission
        self.log = log
        self.repeating = repeating
        self.observers = list(observers)
        self.asked_before = asked_before

    @property
    def experts(self) -> Mapping[str, Expert]:
        return self.deployed.experts

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """``Routed`` first, then the text, ``Done`` last. Errors are raised where they happen.

        Raises ``UnknownModelError``, ``InvalidRequestError``, ``OverloadedError`` and whatever the engine raises.
        """
        with (
            Progress(request, self.observers) as progress,
            self.admission.request(request.client, request.wait_s, request.expected_wait_s) as ticket,
        ):
            async with aclosing(self._events(request, ticket, progress)) as events:
                async for event in events:
                    yield event

    async def _events(self, request: ChatRequest, ticket: Ticket, progress: Progress) -> AsyncGenerator[Event]:
        if self.asked_before is None or not self.asked_before.may_be_kept(request):
            self.admission.hold_place(ticket)
        if self.asked_before is not None:
            self.asked_before.note(request)
        deployed = self.deployed
        progress.decision = decision = await deployed.decide_for(request)
        parts = await deployed.split(request.user_turns[-1], decision)
        progress.route_s = progress.elapsed_s()
        served = {part.expert: self.engine.served(deployed.experts[part.expert]) for part in parts}
        progress.served = served
        if self.log is not None:
            version = deployed.router.version
            logged_as = self.log.record(request.user_turns, decision, served, version)
            progress.decision = decision = replace(decision, id=logged_as)
        yield Routed(decision, parts, progress.route_s, served)
        layout = Layout(parts)
        if not parts:
            titles = deployed.titles
            yield Text(clarification(decision, titles) if decision.kind == "clarify" else refusal(titles))
        else:
            progress.ticket = ticket
            ticketed = replace(request, params=replace(request.params, ticket=ticket))
            async with aclosing(self._answer(deployed, ticketed, parts, progress)) as events:
                async for event in events:
                    if event.text and not isinstance(event, Section):
                        progress.first_token_s = progress.first_token_s or progress.elapsed_s()
                    layout.add(event)
                    yield event
        yield progress.done(layout.answered())

    async def ask(self, request: ChatRequest, events: AsyncGenerator[Event] | None = None) -> Answer:
        """The whole answer at once; ``events`` is its stream where somebody listens along."""
        routed: Routed | None = None
        sources: list[Sources] = []
        pieces: list[str] = []
        async with aclosing(events or self.stream(request)) as stream:
            async for event in stream:
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
            event.cache,
            event.similar_to,
        )

    async def close(self) -> None:
        if self.deployed.examples is not None:
            self.deployed.examples.close()
        try:
            await self.engine.close()
            self.deployed.router.close()
        finally:
            if self.log is not None:
                await asyncio.to_thread(self.log.close)
            for observer in self.observers:
                await asyncio.to_thread(observer.close)

    def _answer(
        self, deployed: Deployment, request: ChatRequest, parts: tuple[Part, ...], progress: Progress
    ) -> AsyncGenerator[Event]:
        streams = [self._answer_part(deployed, request, part, parts, progress) for part in parts]
        return sections(parts, deployed.titles, streams) if len(parts) > 1 else streams[0]

    async def _answer_part(
        self, deployed: Deployment, request: ChatRequest, part: Part, parts: tuple[Part, ...], progress: Progress
    ) -> AsyncGenerator[Event]:
        with progress.part(part.expert) as own:
            found, stream = await self._begin(deployed, request, part, parts, own)
            if found:
                yield Sources(part.expert, found, own.retrieval.seconds if own.retrieval else 0.0)
            accepted = False
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if not accepted:
                        accepted = True
                        yield Accepted(progress.queue_s)
                    own.heard(chunk)
                    if chunk.text:
                        yield Text(chunk.text)

    async def _begin(
        self, deployed: Deployment, request: ChatRequest, part: Part, parts: tuple[Part, ...], progress: PartProgress
    ) -> tuple[tuple[Found, ...], AsyncGenerator[Chunk]]:
        """What the expert reads, and its answer: a new one, or one that was given to the same in other words."""
        expert, repeating = deployed.experts[part.expert], self.repeating
        others = [
            deployed.experts[other.expert] for other in parts if other is not part and other.question == part.question
        ]
        scope = repeating.scope(self.engine, deployed, expert, request, others) if repeating else None
        kept = await repeating.find(scope, part.question, request) if repeating else None
        if kept is not None:
            progress.similar_to = kept.question
            return kept.found, replayed(kept)
        asked_s = progress.elapsed_s()
        found = await deployed.look_up(expert, [*request.user_turns[:-1], part.question])
        if found:
            progress.retrieved(asked_s, found)
        conversation = [*request.messages[:-1], Message("user", part.question)]
        messages = expert_messages(expert, conversation, others, found)
        params = replace(request.params, trace=progress.trace)
        stream = answered(self.engine, expert, messages, params, found)
        return found, repeating.kept(scope, part.question, found, stream) if repeating else stream
