"""What became of a request, once it is over: what metrics, traces and logs are made of.

Times are seconds since the request arrived. A request that several experts answer has a part for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from expert_router.trace_context import TraceContext
    from expert_router.types import CacheResult, ChatRequest, Decision, Served, Usage

Outcome = Literal["stop", "length", "error", "abort"]
"""vLLM's words: the two ends of a whole answer, an error, a client that left."""


@dataclass(frozen=True, slots=True)
class Period:
    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What one expert's answer came to.

    ``queue`` has a period for each of its runs that were at the door: none where the answer was given again.
    ``first_token_s`` is when its first text came, ``gaps_s`` how long each later piece took: a token as a rule.
    ``usage`` and ``cache`` are those of a whole answer; ``error`` is the code of what it failed with.
    """

    expert: str
    served: Served
    period: Period
    outcome: Outcome
    error: str | None = None
    retrieval: Period | None = None
    passages: int = 0
    queue: tuple[Period, ...] = ()
    first_token_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    usage: Usage | None = None
    cache: CacheResult | None = None
    trace: TraceContext | None = None

    @property
    def generated(self) -> Usage | None:
        """The tokens that were made for this request; none of those that had been made before or for another."""
        return self.usage if self.cache in {None, "off", "miss"} else None

    @property
    def generation(self) -> Period:
        """From its slot to its end; of an answer that took none, from when it was looked for."""
        ready = (period.ended_s for period in (*self.queue[:1], self.retrieval) if period is not None)
        return Period(next(ready, self.period.began_s), self.period.ended_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """``arrived`` is in seconds since 1970; ``decision`` and ``route_s`` are ``None`` where nobody was chosen.

    ``error`` is the code of what the whole request failed with; a part may have failed beside it or alone. ``trace`` is
    its span, a part's that of its generation.
    """

    request: ChatRequest
    request_id: str | None
    arrived: float
    total_s: float
    outcome: Outcome
    error: str | None = None
    decision: Decision | None = None
    route_s: float | None = None
    first_token_s: float | None = None
    parts: tuple[PartRecord, ...] = ()
    trace: TraceContext | None = None
