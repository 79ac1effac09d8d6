"""What crosses a boundary inside the package: frozen dataclasses, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

AUTO = "auto"
"""The model name that asks the router to choose."""
GENERAL = "general"
"""The model name of the bare base model; also who answers when no expert fits."""

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
DecisionKind = Literal["single", "several", "general", "clarify", "refused", "forced"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to sample. ``temperature`` 0 is greedy decoding and therefore deterministic."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries ``finish_reason`` and ``usage``; its text may be empty."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained change to a base model, pinned by the hash of its file."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Expert:
    """A domain of knowledge behind one name: data, never code.

    ``base_model`` names an entry of ``models.lock``; ``None`` takes the engine's default. ``adapter`` is ``None``
    while the expert is the base model with its own instructions. ``questions`` is its CSV of questions and answers.
    """

    name: str
    title: str
    description: str
    instructions: str
    examples: tuple[str, ...] = ()
    base_model: str | None = None
    adapter: Adapter | None = None
    questions: Path | None = None
    split_name: str = ""
    """The word in ``train_<word>.csv``; the expert's name unless the manifest says otherwise."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a router thinks of one question.

    ``experts`` maps each expert to the probability, in [0, 1], that the question needs it. The probabilities are
    independent of each other: a question may need several experts. ``none`` is the probability that it needs none.
    """

    experts: Mapping[str, float]
    none: float

    def ranked(self) -> list[tuple[str, float]]:
        return sorted(self.experts.items(), key=lambda pair: (-pair[1], pair[0]))


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answers and why. ``experts`` is empty unless ``kind`` is single, several, clarify or forced.

    ``runner_up`` is the best name that was not chosen; ``reason`` is a sentence for the person who asked.
    """

    kind: DecisionKind
    experts: tuple[str, ...]
    scores: Scores | None
    runner_up: str | None
    reason: str
    router: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since the request arrived; ``None`` where the step was not reached."""

    route_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    query: str
    text: str
    decision: Decision
    answered_by: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
