"""What crosses a boundary inside the package: frozen dataclasses but for ``Ticket``, standard library only.

In this order: what an engine takes and gives; an expert, and what it reads; what a router thinks, and what is decided
and explained by it; the events of an answer; a request, and the whole answer to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, ClassVar, Final, Literal, get_args

from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Mapping
    from pathlib import Path

    from expert_router.trace_context import TraceContext

AUTO = "auto"
"""The model name that asks the router to choose."""
GENERAL = "general"
"""The model name of the bare base model; also who answers when no expert fits."""

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
DecisionKind = Literal["single", "several", "general", "clarify", "refused", "forced"]
Rating = Literal["up", "down"]
Quantization = Literal["q8_0", "q4_0"]
"""Bits a weight, in GGUF's words: how the embedded engine holds a model."""
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
CacheUse = Literal["use", "renew", "bypass"]
"""What a request wants of kept answers: one of them if it is there; a new one, to be kept; neither."""
CacheResult = Literal["hit", "miss", "shared", "off", "similar"]
"""Where an answer came from: kept; new and looked for in vain; another's run that was going on; not looked for;
kept for a question in other words."""
DEFAULT_QUANTIZATION: Final = "q8_0"


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A run at the door, by ``time.monotonic``; one that was let in at once ends as it began."""

    expert: str
    began: float
    ended: float


@dataclass(eq=False, slots=True)
class Ticket:
    """A request at the door before the engine, whatever number of runs it takes; ``serving.admission`` writes in it.

    ``client`` is who asks; ``deadline``, by ``time.monotonic``, is until when it is worth to wait, and
    ``expected_wait_s`` the longest wait in prospect with which it joins the queue. ``placed`` once it had a slot or a
    place in the queue, or one is held for it while it is ``coming``; ``kept`` has the slots that wait for its
    next runs, by expert, and ``waits`` are those of its runs that were at the door.
    """

    client: str = ""
    deadline: float = inf
    expected_wait_s: float = inf
    placed: bool = False
    coming: bool = False
    kept: dict[str, TimerHandle] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)

    @property
    def waited_s(self) -> float:
        """All of its runs' together."""
        return sum((wait.ended - wait.began for wait in self.waits), 0.0)


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to sample. ``temperature`` 0 is greedy decoding and therefore deterministic.

    ``begin`` is the answer's beginning, given: the engine goes on from there, and its text includes it (prefill).
    ``probability`` asks for that of the first token. An engine that tells it understands ``begin`` too; nobody gives
    one to another. With ``ignore_eos`` the answer goes on where the model would end it, up to ``max_tokens`` or a stop
    sequence: for measurements. ``cache``, ``ticket`` and ``trace`` shape no answer: they say whether one that was given
    before will do, whose turn it is, and in which span it is made.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    begin: str = ""
    probability: bool = False
    cache: CacheUse = "use"
    ignore_eos: bool = False
    ticket: Ticket | None = field(default=None, compare=False)
    trace: TraceContext | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries ``finish_reason`` and ``usage``; its text may be empty.

    ``probability`` is that of the answer's first token, in the first chunk with text, where it was asked for and the
    engine can tell. ``cache`` is where the answer came from, in the last chunk of an engine that keeps answers.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    probability: float | None = None
    cache: CacheResult | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained change to a base model: the folder it is in, and the hash of its weights.

    ``quantization`` is that of the merged model in the embedded engine.
    """

    path: Path
    sha256: str
    quantization: Quantization = DEFAULT_QUANTIZATION


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """A smaller or faster form of an expert's model: a base, perhaps pruned, and how its weights are held."""

    base: str
    quantization: Quantization


@dataclass(frozen=True, slots=True)
class Abstention:
    """When an expert that reads says that it does not know: a logistic rule, calibrated for one adapter.

    ``doubt`` weighs the log-odds that the expert itself begins to refuse, ``match`` how similar the passages found are
    to the question, all of them together. ``adapter`` are the first digits of the hash it was calibrated with.
    """

    adapter: str
    bias: float
    doubt: float
    match: float

    def refuses(self, doubt: float, match: float) -> bool:
        return self.bias + self.doubt * doubt + self.match * match > 0


@dataclass(frozen=True, slots=True)
class Served:
    """What answers for an expert: the base model, and the hash of the adapter's weights if it has one."""

    base: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of an expert's own texts. ``id`` is unique within the expert; ``file`` is below its knowledge folder."""

    id: str
    title: str
    text: str
    file: str


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that retrieval found, and how well it fits the question: about 0 to 1.5, comparable within a search.

    ``excerpt`` are its sentences closest to the question, in the passage's order; empty stands for all of them.
    ``similarity`` is the cosine, of the question and the closest text of the passage: unlike the score it does not grow
    with the question's length, so that searches may be compared by it.
    """

    passage: Passage
    score: float
    excerpt: str = ""
    similarity: float = 0.0


@dataclass(frozen=True, slots=True)
class Expert:
    """A domain of knowledge behind one name: data, never code.

    ``base_model`` names an entry of ``models.lock``; ``None`` takes the engine's default. ``adapters`` by the name of
    the base they were trained on; without any the expert is the base model with its own instructions. ``serve_as`` has,
    by the name of a base, the variant that the embedded engine serves in its place; there is an adapter for each.
    ``abstention``, by the adapter's base, is when it refuses; without one, whenever it begins to.
    ``questions`` is its CSV of questions and answers, ``knowledge`` the folder of texts it answers from, ``reading`` a
    CSV of questions about those texts to train on, ``unanswerable`` one of questions of its field that they do not
    answer, to calibrate and to measure on, ``unseen`` one with keys, written without a look at those texts, to
    calibrate on.
    """

    name: str
    title: str
    description: str
    instructions: str
    examples: tuple[str, ...] = ()
    base_model: str | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    serve_as: Mapping[str, ModelVariant] = field(default_factory=dict)
    abstention: Mapping[str, Abstention] = field(default_factory=dict)
    questions: Path | None = None
    knowledge: Path | None = None
    reading: Path | None = None
    unanswerable: Path | None = None
    unseen: Path | None = None
    split_name: str = ""
    """The word in ``train_<word>.csv``; the expert's name unless the manifest says otherwise."""

    def adapter_for(self, base: str) -> Adapter | None:
        """The adapter to answer with on ``base``; ``None`` when the expert has none at all.

        Raises ``NotReadyError`` when it has adapters, but none for this base: it would answer as another than it is.
        """
        if not self.adapters:
            return None
        if base not in self.adapters:
            raise NotReadyError(
                f"The expert {self.name!r} has adapters for {', '.join(self.adapters)}, but none for the base model "
                f"{base}. Train one (expert-router train expert {self.name}), or take [adapters] out of its manifest "
                "to let the base model answer with the expert's instructions."
            )
        return self.adapters[base]

    def embedded_on(self, base: str) -> tuple[str, Adapter | None]:
        """The base model and the adapter that the embedded engine answers with where ``base`` is configured.

        Raises ``NotReadyError`` as ``adapter_for`` does.
        """
        variant = self.serve_as.get(base)
        if variant is None:
            return base, self.adapter_for(base)
        adapter = self.adapter_for(variant.base)
        return variant.base, adapter and replace(adapter, quantization=variant.quantization)


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
class Thresholds:
    """Probabilities in [0, 1] that calibration found.

    An expert is needed from ``accept`` on. Who reaches ``clarify``, none-of-them included, is in the prediction set:
    more than one there is worth asking back.
    """

    accept: float = 0.5
    clarify: float = 0.35

    def claimed(self, claim: float, none: float) -> bool:
        """Whether an expert is needed and none-of-them may not be meant; ``claim`` is the largest of the experts'."""
        return claim >= self.accept and none < self.clarify


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answers and why. ``experts`` is empty unless ``kind`` is single, several, clarify or forced.

    ``runner_up`` is the best name that was not chosen; ``reason`` is a sentence for the person who asked.
    ``prediction_set`` are those that may be needed, most probable first; ``general`` in it stands for none of them.
    ``id`` is its name in the decision log, where it is kept.
    """

    kind: DecisionKind
    experts: tuple[str, ...]
    scores: Scores | None
    runner_up: str | None
    reason: str
    router: str = ""
    prediction_set: tuple[str, ...] = ()
    id: str | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """Whom the person may choose from, where the question is asked back."""
        return self.prediction_set if self.kind == "clarify" else ()


@dataclass(frozen=True, slots=True)
class WordWeight:
    """What a word said for those whom a decision is about: how their log-odds change when it is taken away, negated.

    Above 0 it speaks for them, below against. ``start`` to ``end`` are its characters in the question, or in the user's
    turn ``turns_back`` before it. Where a word occurs more than once, all of them are taken away together.
    """

    text: str
    start: int
    end: int
    turns_back: int
    weights: Mapping[str, float]
    """By expert; ``general`` stands for none of them."""


@dataclass(frozen=True, slots=True)
class NearestExample:
    """A question that the router learnt from, whom it needs, and how similar it is: the cosine, 1 for the same."""

    query: str
    experts: tuple[str, ...]
    cosine: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question goes where it goes.

    ``history`` are the earlier user turns that it was read with, oldest first; empty where it was read alone.
    ``about`` are those whom the words speak for or against: who was chosen, who may be meant, or ``general``.
    ``words`` are in the order of the text, the question's before those of earlier turns; ``words_left_out`` counts
    those of a long message that were not tried. ``nearest`` is ``None`` while the examples are still being read.
    """

    query: str
    history: tuple[str, ...]
    decision: Decision
    thresholds: Thresholds
    about: tuple[str, ...]
    words: tuple[WordWeight, ...]
    words_left_out: int = 0
    nearest: tuple[NearestExample, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a person said of a decision: whether it was right, and who should have answered; one of them at least.

    ``experts`` is empty when none of them should have, and ``None`` when the person did not say.
    """

    rating: Rating | None = None
    experts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds since the request arrived; ``None`` where the step was not reached.

    ``queue_s``, the wait for a slot, and ``retrieve_s``, the search for passages, the longest where several experts
    search at once, are durations.
    """

    route_s: float | None = None
    queue_s: float | None = None
    retrieve_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one expert is asked: the whole question, or its words of a question that several answer."""

    expert: str
    question: str


@dataclass(frozen=True, slots=True)
class AnsweredPart:
    """Where the answer to a part stands: characters ``start`` to ``end`` of the whole text, headings not counted.

    ``error`` says why it could not be answered; the text says so too.
    """

    expert: str
    question: str
    start: int
    end: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """First event of an answer: who answers and why.

    ``parts`` are in the order of the answer's sections; their experts may be ``general`` alone, or nobody.
    """

    decision: Decision
    parts: tuple[Part, ...]
    route_s: float
    served: Mapping[str, Served] = field(default_factory=dict)
    """Which weights answer, by expert."""
    text: ClassVar[str] = ""

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(part.expert for part in self.parts)


@dataclass(frozen=True, slots=True)
class Section:
    """From here on ``expert`` answers; sent only when several do. ``text`` is the heading to show."""

    expert: str
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What ``expert`` was given to read, best first: ``[1]`` in its answer is the first."""

    expert: str
    found: tuple[Found, ...]
    retrieve_s: float = field(default=0.0, compare=False)
    text: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """``expert`` could not answer its part, while another answers: ``error`` says why, ``text`` says it to the user."""

    expert: str
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine took the prompt: what can be refused up front was not. ``queue_s`` is how long it waited for that."""

    queue_s: float | None = None
    text: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Done:
    """Last event of a whole answer. ``cache`` is where each expert's came from, where answers are kept.

    ``similar_to`` is the earlier question of each answer that was made for other words.
    """

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    parts: tuple[AnsweredPart, ...] = ()
    cache: Mapping[str, CacheResult] = field(default_factory=dict)
    similar_to: Mapping[str, str] = field(default_factory=dict)
    text: ClassVar[str] = ""


Event = Routed | Accepted | Section | Sources | Failed | Text | Done
"""What streams out of the dispatcher; every event has a ``text``, empty where there is nothing to show."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation and who should answer it. ``model`` is ``auto``, an expert's name or ``general``.

    ``client`` tells who asks, so that all have their turn; ``wait_s`` is how long it is worth to wait for that. With
    ``expected_wait_s`` it is refused at once where its turn seems farther off and others have waited for longer than
    that already, so that it is no mere burst; who is let in line stays, if it takes longer than it seemed.
    """

    messages: tuple[Message, ...]
    model: str = AUTO
    params: GenerationParams = field(default_factory=GenerationParams)
    client: str = ""
    wait_s: float | None = None
    expected_wait_s: float = inf

    @property
    def user_turns(self) -> list[str]:
        """What the user said, oldest first; the last one is the question."""
        return [message.content for message in self.messages if message.role == "user"]


@dataclass(frozen=True, slots=True)
class Answer:
    query: str
    text: str
    decision: Decision
    answered_by: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
    sources: tuple[Sources, ...] = ()
    served: Mapping[str, Served] = field(default_factory=dict)
    parts: tuple[AnsweredPart, ...] = ()
    cache: Mapping[str, CacheResult] = field(default_factory=dict)
    similar_to: Mapping[str, str] = field(default_factory=dict)
