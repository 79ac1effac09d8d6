"""Every metric of the server: what requests came to, and what the server holds now. docs/metrics.md lists them.

Names are vLLM's where it has one (https://docs.vllm.ai/en/latest/usage/metrics/), the buckets those of OpenTelemetry's
GenAI conventions, with finer ones below. An answer is one expert's: a request that several answer counts for each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from expert_router.telemetry.series import Counter, Family, Histogram
from expert_router.telemetry.state import ANSWER, NOW, gauges, short_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_router.records import PartRecord, RequestRecord
    from expert_router.telemetry.state import ServerState

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Methods and paths that clients make up share a series."""

STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0)
FIRST_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
WHOLE_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

REQUESTS = Family(
    "expert_router_requests_total",
    "counter",
    "Answers by how they ended: stop, length, error, or abort for a client that left. Without an expert: requests that "
    "nobody answered, as those that are asked back.",
    (*ANSWER, "finished_reason"),
)
FIRST_TOKEN = Family(
    "expert_router_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to an answer's first text.",
    ANSWER,
)
INTER_TOKEN = Family(
    "expert_router_inter_token_latency_seconds",
    "histogram",
    "From one piece of a new answer to the next; a piece is a token as a rule, or several of what an "
    "expert quotes (`engine.lookup_tokens`).",
    ANSWER,
)
E2E = Family(
    "expert_router_e2e_request_latency_seconds",
    "histogram",
    "From a request's arrival to a whole answer's end.",
    ANSWER,
)
QUEUE = Family(
    "expert_router_request_queue_time_seconds",
    "histogram",
    "The wait for a slot, of answers that needed one; of those that waited in vain too.",
    ("expert",),
)
ROUTE = Family("expert_router_route_seconds", "histogram", "What deciding who answers took, where the router did.")
RETRIEVE = Family("expert_router_retrieve_seconds", "histogram", "What the search for passages took.", ("expert",))
PROMPT = Family("expert_router_prompt_tokens_total", "counter", "Tokens read for whole new answers.", ANSWER)
GENERATED = Family("expert_router_generation_tokens_total", "counter", "Tokens of whole new answers.", ANSWER)
CACHE = Family(
    "expert_router_cache_requests_total",
    "counter",
    "Whole answers by where they came from: hit, miss, shared, off or similar.",
    ("expert", "result"),
)
DECISIONS = Family(
    "expert_router_router_decisions_total",
    "counter",
    "Decisions by kind (single, several, general, clarify, refused, forced) and by each expert that they let answer.",
    ("kind", "expert"),
)
ERRORS = Family(
    "expert_router_errors_total",
    "counter",
    "Answers that failed, by the error's code (docs/errors.md); without an expert: requests that failed before.",
    ("code", "expert"),
)
HTTP = Family(
    "expert_router_http_requests_total",
    "counter",
    "HTTP requests that ended, by the path of their route, or other; status 0 where none was sent.",
    ("method", "path", "status"),
)


class Metrics:
    """A ``ports.RequestObserver``, of one event loop."""

    def __init__(self) -> None:
        self._started = time.time()
        self._requests, self._prompt, self._generated = Counter(REQUESTS), Counter(PROMPT), Counter(GENERATED)
        self._cache, self._decisions, self._errors = Counter(CACHE), Counter(DECISIONS), Counter(ERRORS)
        self._http = Counter(HTTP)
        self._route, self._retrieve = Histogram(ROUTE, STEP_BUCKETS), Histogram(RETRIEVE, STEP_BUCKETS)
        self._queue, self._first = Histogram(QUEUE, FIRST_BUCKETS), Histogram(FIRST_TOKEN, FIRST_BUCKETS)
        self._token, self._e2e = Histogram(INTER_TOKEN, TOKEN_BUCKETS), Histogram(E2E, WHOLE_BUCKETS)
        self._all: tuple[Counter | Histogram, ...] = (
            self._requests, self._first, self._token, self._e2e, self._queue, self._route, self._retrieve,
            self._prompt, self._generated, self._cache, self._decisions, self._errors, self._http,
        )  # fmt: skip

    @property
    def families(self) -> tuple[Family, ...]:
        return (*(each.family for each in self._all), *NOW)

    def observe(self, record: RequestRecord) -> None:
        self._observe_decision(record)
        for part in record.parts:
            self._observe_part(part)
        if not record.parts:
            self._requests.inc("", "", record.outcome)
        if record.error is not None and not any(part.error for part in record.parts):
            self._errors.inc(record.error, "")

    def observe_http(self, method: str, path: str | None, status: int) -> None:
        """``path`` is the route's, with its parameters' names; ``None`` where there is no such route."""
        self._http.inc(method if method in METHODS else OTHER, path or OTHER, str(status))

    def close(self) -> None:
        """It holds nothing that others wait for."""

    def exposition(self, state: ServerState, also: str = "") -> str:
        """All of it as text; ``also`` are labels for all series. Of experts that are gone this is the last time."""
        pieces: list[str] = []
        for each in self._all:
            pieces.append(each.family.head())
            pieces.extend(each.lines(also))
        for family, values in gauges(state, self._started):
            pieces.append(family.head())
            pieces.extend(family.lines(values, also))
        self._forget(state)
        return "".join(pieces)

    def _observe_decision(self, record: RequestRecord) -> None:
        decision = record.decision
        if decision is None:
            return
        for expert in [part.expert for part in record.parts] or [""]:
            self._decisions.inc(decision.kind, expert)
        if decision.kind != "forced" and record.route_s is not None:
            self._route.observe(record.route_s)

    def _observe_part(self, part: PartRecord) -> None:
        answer = (part.expert, short_hash(part.served.adapter))
        self._requests.inc(*answer, part.outcome)
        if part.error is not None:
            self._errors.inc(part.error, part.expert)
        if part.first_token_s is not None:
            self._first.observe(part.first_token_s, *answer)
        if part.outcome in {"stop", "length"}:
            self._e2e.observe(part.period.ended_s, *answer)
        if part.queue:
            self._queue.observe(sum(period.seconds for period in part.queue), part.expert)
        if part.retrieval is not None:
            self._retrieve.observe(part.retrieval.seconds, part.expert)
        if part.cache is not None:
            self._cache.inc(part.expert, part.cache)
        if part.generated is not None:
            self._prompt.inc(*answer, by=part.generated.prompt_tokens)
            self._generated.inc(*answer, by=part.generated.completion_tokens)
        if part.gaps_s and part.cache in {None, "off", "miss"}:
            self._token.observe_all(part.gaps_s, *answer)

    def _forget(self, state: ServerState) -> None:
        current = {(name, short_hash(served.adapter if served else None)) for name, served in state.served.items()}

        def gone(labels: Mapping[str, str]) -> bool:
            expert, adapter = labels.get("expert", ""), labels.get("adapter")
            if not expert:
                return False
            return expert not in state.served if adapter is None else (expert, adapter) not in current

        for each in self._all:
            each.forget(gone)
