"""The seams of the system. Whoever implements ``Router`` or ``Engine`` can be named in the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from expert_router.records import RequestRecord
    from expert_router.types import (
        Chunk,
        Decision,
        Expert,
        Feedback,
        Found,
        GenerationParams,
        Message,
        Scores,
        Served,
        Thresholds,
    )


class Router(Protocol):
    """Turns a question into numbers, and decides nothing: ``routing.policy.Policy`` does, by ``thresholds``."""

    name: str
    version: str
    """Tells it from another of its name: the hash of its artifact, or the name itself where it has none."""
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
        chunk, ``EngineError`` at any time. The last chunk carries ``finish_reason`` and ``usage``. An engine that
        cannot tell the first token's probability leaves it out, whatever ``params`` ask for; one that can goes on from
        ``params.begin``.
        """
        ...

    def served(self, expert: Expert) -> Served:
        """Which weights would answer for the expert. Raises ``NotReadyError`` when it cannot be served."""
        ...

    def identity(self, expert: Expert) -> str | None:
        """All that shapes the expert's answers besides messages and parameters; where any of it changes, so does this.

        The contents of weights and adapter, the chat template, settings and versions. ``None`` where the engine cannot
        tell, and then none of its answers may be given again. Raises what ``served`` raises.
        """
        ...

    async def warm_up(self, expert: Expert) -> None:
        """Load what the expert needs, so that the first question does not wait for it."""
        ...

    def status(self) -> dict[str, object]:
        """What the engine holds and does now: its counters, for health checks and proofs.

        ``unusable`` says why it can answer nothing now, ``None`` that it can; who cannot tell leaves it out.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Holds(Protocol):
    """An engine that loads what an expert needs when it is first asked, and may unload it again."""

    def holds(self, expert: Expert) -> bool:
        """Whether it would answer for the expert without loading anything."""
        ...


class AnswerStore(Protocol):
    """Keeps answers as bytes, for a time. What goes wrong in it reaches no request: that is then answered anew."""

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, whole and unchanged, or ``None``. Never raises."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Keep it in place of what is there, or do not. Never raises."""
        ...

    def status(self) -> dict[str, object]:
        """Its name and its counters."""
        ...

    async def close(self) -> None: ...


class TextEncoder(Protocol):
    """Turns a text into a vector of length one. Thread-safe; ``sha256`` identifies the model."""

    sha256: str

    def encode(self, text: str) -> NDArray[np.float32]:
        """Shape (D,)."""
        ...

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]: ...


class DecisionLog(Protocol):
    """Keeps decisions and what people say of them. Nothing that goes wrong in it reaches an answer."""

    def record(
        self, turns: Sequence[str], decision: Decision, served: Mapping[str, Served], version: str
    ) -> str | None:
        """Take a decision down and give its id; ``None`` where it cannot be kept. Never waits, never raises.

        ``turns`` is what the user said, the question last; ``version`` is the router's.
        """
        ...

    async def rate(self, decision: str, feedback: Feedback) -> None:
        """Keep what was said of a decision last. Returns once it is on disk.

        Raises ``UnknownDecisionError``, or ``NotReadyError`` when it cannot be written now.
        """
        ...

    def status(self) -> dict[str, int]:
        """How many were written, and how many were not and why."""
        ...

    def close(self) -> None:
        """Write what waits, then end. Blocking; closing twice is fine."""
        ...


class RequestObserver(Protocol):
    """Learns what became of each request. Nothing that goes wrong in it reaches an answer."""

    def observe(self, record: RequestRecord) -> None:
        """Called in the event loop, once for each request, when it is over: it must not wait."""
        ...

    def close(self) -> None:
        """Hand on what it holds, then end. Blocking; closing twice is fine."""
        ...


class Knowledge(Protocol):
    """Finds what an expert needs to read before it answers."""

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:
        """The best passages, best first; empty when the expert has none. Blocking, thread-safe."""
        ...
