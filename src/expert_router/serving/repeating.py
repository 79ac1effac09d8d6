"""An answer to a question that was answered before in other words; off unless ``cache.semantic`` says otherwise.

The engine's cache sees whole prompts, and the passages in them differ from one wording to the next. So this stands
before retrieval: an answer is given again with the passages that it was made from.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expert_router.caching.key import DEFAULT, Keeping, answer_key
from expert_router.knowledge.grounding import is_unknown
from expert_router.serving.prompts import expert_messages
from expert_router.types import Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.caching.similar import KeptAnswer, SimilarAnswers
    from expert_router.ports import Engine
    from expert_router.serving.deployment import Deployment
    from expert_router.types import ChatRequest, Chunk, Expert, Found


LONGEST = 300
"""Characters of a question."""


@dataclass(frozen=True, slots=True)
class Repeating:
    """Gives the kept ``answers`` again."""

    answers: SimilarAnswers
    keeping: Keeping = DEFAULT

    def scope(
        self, engine: Engine, deployed: Deployment, expert: Expert, request: ChatRequest, others: Sequence[Expert]
    ) -> str | None:
        """All that shapes the expert's answer but the question and its passages.

        ``None`` where it may neither be kept nor be one that was: within a conversation, by chance, or if so asked.
        A long question is its own, and takes long to read.
        """
        params, question = request.params, request.messages[-1].content
        system = [message for message in request.messages[:-1] if message.role == "system"]
        if len(system) + 1 != len(request.messages) or not self.keeping.allows(params) or len(question) > LONGEST:
            return None
        identity = engine.identity(expert)
        if identity is None:
            return None
        messages = expert_messages(expert, [*system, Message("user", "")], others)
        read = (deployed.library.passages, deployed.library.margin) if deployed.library else None
        return answer_key(
            namespace=repr((self.keeping.namespace, deployed.version, read)),
            client=self.keeping.whose(request.client),
            engine=engine.name,
            identity=identity,
            expert=expert.name,
            messages=messages,
            params=params,
        )

    async def find(self, scope: str | None, question: str, request: ChatRequest) -> KeptAnswer | None:
        return await self.answers.find(scope, question) if scope and request.params.cache == "use" else None

    async def kept(
        self, scope: str | None, question: str, found: Sequence[Found], chunks: AsyncGenerator[Chunk]
    ) -> AsyncGenerator[Chunk]:
        """The chunks, which are kept once they are whole; a refusal is not: other words may find better passages."""
        said: list[Chunk] = []
        async with aclosing(chunks):
            async for chunk in chunks:
                said.append(chunk)
                yield chunk
        if scope and not is_unknown("".join(chunk.text for chunk in said)):
            last = replace(said[-1], cache="similar")
            await self.answers.keep(scope, question, found, [*said[:-1], last])
