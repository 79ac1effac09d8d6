from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.observability import JsonFormatter
from expert_router.settings import TelemetrySettings
from expert_router.types import AUTO, Scores
from support import BOTH_QUESTION, FixedRouter, serve

if TYPE_CHECKING:
    import pytest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
QUESTION = "Why do I sleep, ann@example.org?"


def logged(caplog: pytest.LogCaptureFixture, engine: EchoEngine, **serving: Any) -> tuple[dict[str, Any], str]:
    """The line of an answer, as it is written, and all that was logged."""
    lines: list[str] = []

    class Writing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    handler, logger = Writing(), logging.getLogger("expert_router")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "expert_router"), serve(engine, **serving) as server:
            question = BOTH_QUESTION if serving.get("router") else QUESTION
            body = {"model": AUTO, "messages": [{"role": "user", "content": question}]}
            headers = {"x-request-id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            server.http.post("/v1/chat/completions", json=body, headers=headers)
    finally:
        logger.removeHandler(handler)
    (line,) = (json.loads(line) for line in lines if json.loads(line)["message"] == "answered")
    return line, "".join(lines)


def test_one_line_says_who_answered_and_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    line, everything = logged(caplog, EchoEngine(EchoScript(first_token_delay_s=0.01)))
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)
    assert (line["model"], line["decision"], line["experts"]) == ("auto", "single", ["sleep"])
    assert (line["adapters"], line["outcome"], line["errors"]) == ({"sleep": None}, "stop", {})
    assert line["s"] >= line["first_token_s"] >= 0.01
    assert line["completion_tokens"] > 0 < line["prompt_tokens"]
    assert "question" not in line
    assert "Why do I" not in everything


def test_the_question_is_there_where_it_is_asked_for_and_redacted(caplog: pytest.LogCaptureFixture) -> None:
    line, everything = logged(caplog, EchoEngine(), telemetry=TelemetrySettings(log_questions=True))
    assert line["question"].startswith("Why do I sleep, ")
    assert "ann@example.org" not in everything


def test_what_failed_is_said_by_expert(caplog: pytest.LogCaptureFixture) -> None:
    both = FixedRouter(Scores({"sleep": 0.7, "cars": 0.8}, 0.05))
    failing = EchoEngine(by_expert={"cars": EchoScript(fail_before=True)})
    line, _ = logged(caplog, failing, router=both)
    assert (line["outcome"], line["errors"]) == ("stop", {"cars": "engine_failed"})
