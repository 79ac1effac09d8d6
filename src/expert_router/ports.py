"""The two seams of the system. Whoever implements one of these can be named in the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message, Scores, Thresholds


class Router(Protocol):
    """Turns a question into numbers. It knows nothing of thresholds: ``routing.policy.decide`` does."""

    name: str
    experts: tuple[str, ...]
    thresholds: Thresholds
    """What calibration found for these scores."""

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        """Score one question; ``history`` holds the earlier user turns, oldest first. Blocking, thread-safe."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """Turns an expert and a conversation into a stream of chunks."""

    name: str

    def stream(self, expert: Expert, messages: Sequence[Message], params: GenerationParams) -> AsyncGenerator[Chunk]:
        """Generate. Closing the generator early frees the engine's slot.

        The first chunk may be empty: it says that the prompt was accepted. ``ContextLengthError`` comes before any
        chunk, ``EngineError`` at any time. The last chunk carries ``finish_reason`` and ``usage``.
        """
        ...

    async def warm_up(self, expert: Expert) -> None:
        """Load what the expert needs, so that the first question does not wait for it."""
        ...

    def status(self) -> dict[str, object]:
        """What the engine holds and does now: its counters, for health checks and proofs."""
        ...

    async def close(self) -> None: ...
