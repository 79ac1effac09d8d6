"""A request's record as spans, to a collector over OTLP: route, then for each expert retrieve, queue and generate.

Attributes are those of OpenTelemetry's GenAI conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/), and our
own under ``expert_router``. Spans are made when the request is over: while it runs only their ids are needed.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from expert_router.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from expert_router.records import PartRecord, Period, RequestRecord
    from expert_router.trace_context import TraceContext

logger = logging.getLogger(__name__)

PATH = "/v1/traces"
TIMEOUT_S = 3.0
"""For a batch of spans, tries included; so long the end of the server may wait, too."""
SERVICE = "expert-router"
SCOPE = InstrumentationScope("expert_router")

Attributes = dict[str, Any]


class Traces:
    """A ``ports.RequestObserver``. ``endpoint`` is the collector's address, without ``/v1/traces``.

    With ``questions`` the spans have their text, redacted. A collector that is away costs no request anything:
    its spans are lost, which is said once.
    """

    def __init__(self, endpoint: str, *, questions: bool = False) -> None:
        self._questions = questions
        self._resource = Resource({"service.name": SERVICE})
        for library in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # each failed try is a line of theirs
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/').removesuffix(PATH)}{PATH}", timeout=TIMEOUT_S)
        self._processor = BatchSpanProcessor(_SaidOnce(exporter, endpoint), schedule_delay_millis=500)

    def observe(self, record: RequestRecord) -> None:
        if record.trace is not None and record.trace.recorded:
            for span in self._spans(record, record.trace):
                self._processor.on_end(span)

    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, record: RequestRecord, trace: TraceContext) -> Iterator[ReadableSpan]:
        whole = self._request_attributes(record)
        yield self._span(
            record, f"chat {record.request.model}", trace, (0, record.total_s), whole, kind=SpanKind.SERVER
        )
        if record.route_s is not None:
            yield self._span(record, "route", trace.child(), (0, record.route_s), _decision(record))
        for part in record.parts:
            expert = {"expert_router.expert": part.expert}
            if part.retrieval is not None:
                found = {**expert, "expert_router.passages": part.passages}
                yield self._span(record, f"retrieve {part.expert}", trace.child(), _ends(part.retrieval), found)
            for period in part.queue:
                yield self._span(record, f"queue {part.expert}", trace.child(), _ends(period), expert)
            if part.trace is not None:
                yield self._generation(record, part, part.trace)

    def _generation(self, record: RequestRecord, part: PartRecord, trace: TraceContext) -> ReadableSpan:
        name, ends, attributes = f"generate {part.expert}", _ends(part.generation), _answer(part)
        kind, error, first_s = SpanKind.CLIENT, part.error, part.first_token_s
        return self._span(record, name, trace, ends, attributes, kind=kind, error=error, first_token_s=first_s)

    def _request_attributes(self, record: RequestRecord) -> Attributes:
        request, params = record.request, record.request.params
        whole = [part.usage for part in record.parts if part.usage is not None]
        asked: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": SERVICE,
            "gen_ai.request.model": request.model,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.seed": params.seed,
            "gen_ai.response.finish_reasons": [part.outcome for part in record.parts] or [record.outcome],
            "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in whole) if whole else None,
            "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in whole) if whole else None,
            "expert_router.request_id": record.request_id,
            **_decision(record),
        }
        if self._questions and request.user_turns:
            said = [{"role": "user", "parts": [{"type": "text", "content": redact(request.user_turns[-1])}]}]
            asked["gen_ai.input.messages"] = json.dumps(said, ensure_ascii=False)
        return asked

    def _span(
        self,
        record: RequestRecord,
        name: str,
        trace: TraceContext,
        ends_s: tuple[float, float],
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
        first_token_s: float | None = None,
    ) -> ReadableSpan:
        def at(seconds: float) -> int:
            return round((record.arrived + seconds) * 1e9)

        error = record.error if kind is SpanKind.SERVER else error
        first = () if first_token_s is None else (Event("first token", timestamp=at(first_token_s)),)
        return ReadableSpan(
            name,
            _context(trace, trace.span_id),
            parent=_context(trace, trace.parent_id, remote=kind is SpanKind.SERVER) if trace.parent_id else None,
            resource=self._resource,
            attributes={key: value for key, value in {**attributes, "error.type": error}.items() if value is not None},
            events=first,
            kind=kind,
            instrumentation_scope=SCOPE,
            status=Status(StatusCode.ERROR if error else StatusCode.UNSET),
            start_time=at(ends_s[0]),
            end_time=at(ends_s[1]),
        )


class _SaidOnce(SpanExporter):
    """Says when spans begin to be lost, and when they arrive again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        lost = result is not SpanExportResult.SUCCESS
        if lost and not self._lost:
            logger.warning("traces are lost: the collector does not take them", extra={"endpoint": self._endpoint})
        elif self._lost and not lost:
            logger.info("traces arrive again", extra={"endpoint": self._endpoint})
        self._lost = lost
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _decision(record: RequestRecord) -> Attributes:
    decision = record.decision
    if decision is None:
        return {}
    scores = decision.scores.experts if decision.scores is not None else {}
    return {
        "expert_router.decision.kind": decision.kind,
        "expert_router.decision.id": decision.id,
        "expert_router.decision.experts": list(decision.experts),
        "expert_router.decision.scores": [round(scores.get(name, 0.0), 4) for name in decision.experts],
        "expert_router.decision.runner_up": decision.runner_up,
        "expert_router.router": decision.router or None,
    }


def _answer(part: PartRecord) -> Attributes:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": SERVICE,
        "gen_ai.request.model": part.expert,
        "gen_ai.response.model": part.served.base,
        "gen_ai.response.finish_reasons": [part.outcome],
        "gen_ai.usage.input_tokens": part.usage and part.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": part.usage and part.usage.completion_tokens,
        "expert_router.expert": part.expert,
        "expert_router.adapter": part.served.adapter,
        "expert_router.cache": part.cache,
    }


def _ends(period: Period) -> tuple[float, float]:
    return period.began_s, period.ended_s


def _context(trace: TraceContext, span_id: str, *, remote: bool = False) -> SpanContext:
    state = TraceState.from_header([trace.state]) if trace.state else TraceState()
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), remote, TraceFlags(trace.flags), state)
