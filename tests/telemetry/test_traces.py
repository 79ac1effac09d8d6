"""A request's spans, as a real receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import upstream
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.engines.openai_http import OpenAIHTTPEngine
from expert_router.settings import TelemetrySettings
from expert_router.trace_context import TraceContext
from expert_router.types import AUTO, Scores
from support import BOTH_QUESTION, SLEEP_QUESTION, STAGES, FixedKnowledge, FixedRouter, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CALLER = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}


@dataclass
class Collector:
    settings: TelemetrySettings
    spans: list[Span] = field(default_factory=list)

    def named(self, count: int) -> dict[str, Span]:
        """The first so many spans, by name, once they are there."""
        eventually(lambda: len(self.spans) >= count, within_s=10)
        assert len(self.spans) == count, [span.name for span in self.spans]
        return {span.name: span for span in self.spans}


@contextmanager
def collecting(*, log_questions: bool = False) -> Iterator[Collector]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    collector.spans += scope.spans
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        collector = Collector(TelemetrySettings(otlp_endpoint=endpoint, log_questions=log_questions))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, Any]:
    def value(of: Any) -> Any:
        kind = of.WhichOneof("value")
        return [value(each) for each in of.array_value.values] if kind == "array_value" else getattr(of, kind)

    return {each.key: value(each.value) for each in span.attributes}


def test_a_request_is_route_retrieve_queue_and_generate_below_its_callers_span() -> None:
    knowledge = FixedKnowledge({"sleep": [STAGES]})
    with (
        collecting() as collector,
        serve(EchoEngine(EchoScript(0.02, 0.001)), knowledge=knowledge, telemetry=collector.settings) as server,
    ):
        answer = server.http.post(
            "/v1/chat/completions",
            json={"model": AUTO, "messages": [{"role": "user", "content": SLEEP_QUESTION}], "max_tokens": 50},
            headers={**FROM_CALLER, "x-request-id": "mine"},
        ).json()
        spans = collector.named(5)
    request, generate = spans.pop("chat auto"), spans["generate sleep"]
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (TRACE, CALLER, "vendor=1")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert list(spans) == ["route", "retrieve sleep", "queue sleep", "generate sleep"]
    assert {span.parent_span_id for span in spans.values()} == {request.span_id}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    ends = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in spans.values()]
    assert all(began <= ended <= request.end_time_unix_nano for began, ended in ends)
    assert [began for began, _ in ends] == sorted(began for began, _ in ends)
    assert generate.end_time_unix_nano - generate.start_time_unix_nano >= 20_000_000
    assert [event.name for event in generate.events] == ["first token"]
    told = attributes(request)
    assert told["gen_ai.operation.name"] == "chat"
    assert (told["gen_ai.request.model"], told["gen_ai.request.max_tokens"]) == ("auto", 50)
    assert told["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert (told["expert_router.decision.kind"], told["expert_router.request_id"]) == ("single", "mine")
    assert attributes(generate)["gen_ai.response.model"] == "echo"
    assert attributes(generate)["gen_ai.response.finish_reasons"] == ["stop"]
    assert attributes(spans["retrieve sleep"])["expert_router.passages"] == 1
    assert SLEEP_QUESTION not in str([request, *spans.values()])


def test_the_question_is_told_where_it_is_asked_for_and_redacted() -> None:
    with collecting(log_questions=True) as collector, serve(EchoEngine(), telemetry=collector.settings) as server:
        server.post(question="Does ann@example.org sleep?")
        request = collector.named(4)["chat sleep"]
    said = attributes(request)["gen_ai.input.messages"]
    assert "sleep?" in said
    assert "ann@example.org" not in said


def test_each_of_several_experts_has_its_own_and_what_failed_says_why() -> None:
    both = FixedRouter(Scores({"sleep": 0.7, "cars": 0.8}, 0.05))
    failing = EchoEngine(by_expert={"cars": EchoScript(fail_before=True)})
    with collecting() as collector, serve(failing, both, telemetry=collector.settings) as server:
        server.post(question=BOTH_QUESTION, model=AUTO)
        spans = collector.named(6)
    assert {"generate sleep", "generate cars", "queue sleep", "queue cars"} < spans.keys()
    failed = spans["generate cars"]
    assert (failed.status.code, attributes(failed)["error.type"]) == (Status.STATUS_CODE_ERROR, "engine_failed")
    assert spans["chat auto"].status.code == spans["generate sleep"].status.code == Status.STATUS_CODE_UNSET


def test_the_engines_server_is_told_the_span_that_it_works_for() -> None:
    with collecting() as collector, upstream.serve() as behind:
        engine = OpenAIHTTPEngine(behind.base_url, None, lambda _: "base")
        with serve(engine, telemetry=collector.settings) as server:
            server.http.post("/v1/chat/completions", json=body(), headers=FROM_CALLER)
            generate = collector.named(4)["generate sleep"]
        headers = behind.upstream.seen[-1].headers
    assert headers["traceparent"] == f"00-{TRACE}-{generate.span_id.hex()}-01"
    assert headers["tracestate"] == "vendor=1"


def test_without_traces_of_our_own_the_callers_is_handed_on_as_it_came() -> None:
    with upstream.serve() as behind:
        engine = OpenAIHTTPEngine(behind.base_url, None, lambda _: "base")
        with serve(engine) as server:
            server.http.post("/v1/chat/completions", json=body(), headers=FROM_CALLER)
            server.http.post("/v1/chat/completions", json=body())
        handed_on, none = (seen.headers for seen in behind.upstream.seen[-2:])
    assert {name: handed_on[name] for name in FROM_CALLER} == FROM_CALLER
    assert "traceparent" not in none


def test_a_caller_who_wants_no_spans_gets_none() -> None:
    with collecting() as collector, serve(EchoEngine(), telemetry=collector.settings) as server:
        server.http.post("/v1/chat/completions", json=body(), headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        server.post()
        spans = collector.named(4)  # of the second
    assert TRACE not in {span.trace_id.hex() for span in spans.values()}


def test_requests_go_on_without_the_collector_and_one_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    away = TelemetrySettings(otlp_endpoint="http://127.0.0.1:9")
    with caplog.at_level(logging.INFO), serve(EchoEngine(), telemetry=away) as server:
        for _ in range(3):
            assert server.post().status_code == 200
        (traces,) = [each for each in server.dispatcher.observers if hasattr(each, "_processor")]
        traces.close()
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warned] == ["traces are lost: the collector does not take them"]


@pytest.mark.parametrize(
    "header",
    ["", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01", "x\r\ny"],
)
def test_a_header_that_is_no_trace_context_begins_a_new_one(header: str) -> None:
    assert TraceContext.of_request({"traceparent": header}, recorded=False) is None
    begun = TraceContext.of_request({"traceparent": header}, recorded=True)
    assert begun is not None
    assert (begun.trace_id != TRACE, begun.parent_id) == (True, None)


def body() -> dict[str, Any]:
    return {"model": "sleep", "messages": [{"role": "user", "content": SLEEP_QUESTION}]}
