"""The engine behind the door: a slot for each of its runs, for as long as it goes on.

What the engine is not asked for takes none: answers that are kept, and runs that others have begun. And as a run waits
for no other, nobody who holds a slot ever waits for one.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.ports import Engine
    from expert_router.serving.admission import Admission
    from expert_router.types import Chunk, Expert, GenerationParams, Message, Served


class AdmittedEngine:
    """The ``engine``, which is its own from here on; ``admission`` may be that of others too."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self.name = engine.name
        self._engine = engine
        self._admission = admission

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``OverloadedError``, before any chunk.

        Who asks for the first token's probability asks on: its slot waits a moment for that.
        """
        slot = self._admission.slot(expert.name, params.ticket, asks_on=params.probability)
        async with slot as has_token, aclosing(self._engine.stream(expert, messages, params)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    has_token()
                yield chunk

    def served(self, expert: Expert) -> Served:
        return self._engine.served(expert)

    def identity(self, expert: Expert) -> str | None:
        return self._engine.identity(expert)

    async def warm_up(self, expert: Expert) -> None:
        await self._engine.warm_up(expert)

    def status(self) -> dict[str, object]:
        return self._engine.status()

    async def close(self) -> None:
        await self._engine.close()
