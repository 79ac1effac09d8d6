"""Who answers and who decides, all of one version: what a dispatcher replaces in one step when experts come and go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

from expert_router.errors import InvalidRequestError, UnknownModelError
from expert_router.knowledge.grounding import worth_reading
from expert_router.routing.explanation import explain
from expert_router.routing.policy import forced
from expert_router.routing.splitting import split_question
from expert_router.serving.prompts import BARE_BASE_MODEL
from expert_router.types import AUTO, GENERAL, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.ports import Knowledge, Router
    from expert_router.routing.nearest import Examples, WithTaught
    from expert_router.routing.policy import Policy
    from expert_router.types import ChatRequest, Decision, Expert, Explanation, Found


@dataclass(frozen=True, slots=True)
class Library:
    """What the experts read from; one is given at most so many ``passages``, those ``worth_reading``."""

    knowledge: Knowledge
    passages: int
    margin: float = inf

    def look_up(self, expert: str, question: str, history: Sequence[str] = ()) -> tuple[Found, ...]:
        """What an expert reads before it answers, best first; ``history`` holds the earlier user turns."""
        return tuple(worth_reading(self.knowledge.search(expert, question, history, self.passages), self.margin))


@dataclass(frozen=True)
class Deployment:
    """``trained`` are the experts by name; the router's threshold rules are in ``policy``.

    Without a ``library`` the experts answer from memory; without ``examples`` explanations name none. ``version`` is
    the catalogue's. A request takes one and keeps it to its end, so that it never sees half of two.
    """

    trained: Mapping[str, Expert]
    router: Router
    policy: Policy
    library: Library | None = None
    examples: Examples | WithTaught | None = None
    version: int = 0

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """Whom a request may name: the experts and the bare base model."""
        return {**self.trained, GENERAL: BARE_BASE_MODEL}

    @cached_property
    def titles(self) -> dict[str, str]:
        return {expert.name: expert.title for expert in self.trained.values()}

    async def decide(self, query: str, history: Sequence[str] = ()) -> Decision:
        """Route one question; ``history`` holds the earlier user turns, oldest first."""
        scores = await asyncio.to_thread(self.router.score, query, history)
        return self.policy.decide(scores, self.router.name)

    async def decide_for(self, request: ChatRequest) -> Decision:
        """Raises ``InvalidRequestError`` or ``UnknownModelError``."""
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

    async def split(self, question: str, decision: Decision) -> tuple[Part, ...]:
        """Several experts are asked their own parts of the question, where it can be told apart."""
        names = _answering(decision)
        if len(names) < 2:  # noqa: PLR2004 - several
            return tuple(Part(name, question) for name in names)
        asked = await asyncio.to_thread(split_question, question, names, lambda text: self.router.score(text).experts)
        return tuple(Part(expert, part) for expert, part in asked.items())

    async def look_up(self, expert: Expert, turns: Sequence[str]) -> tuple[Found, ...]:
        """What the expert reads before it answers the last of the user's turns."""
        if self.library is None or expert.knowledge is None:
            return ()
        return await asyncio.to_thread(self.library.look_up, expert.name, turns[-1], turns[:-1])

    async def explain(self, query: str, history: Sequence[str] = (), nearest: int = 5) -> Explanation:
        """Why ``decide`` decides so; up to ``nearest`` examples once ``read_examples`` has been through.

        Raises ``InvalidRequestError`` when the question is empty.
        """
        if not query.strip():
            raise InvalidRequestError("The question is empty.", param="query")
        explanation = await asyncio.to_thread(explain, self.router, self.policy, query, history)
        if self.examples is None or not nearest:
            return explanation
        found = await asyncio.to_thread(self.examples.nearest, query, explanation.history, nearest)
        return replace(explanation, nearest=found)

    async def read_examples(self, *, progress: bool = False) -> None:
        """Get the router's examples ready to compare with: seconds the first time. Raises ``DataError``."""
        if self.examples is not None:
            await asyncio.to_thread(self.examples.read, progress=progress)


def _answering(decision: Decision) -> tuple[str, ...]:
    """Who generates text: the chosen experts, the base model, or nobody."""
    if decision.kind == "general":
        return (GENERAL,)
    return () if decision.kind in {"clarify", "refused"} else decision.experts
