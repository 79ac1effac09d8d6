"""``server-timing``: a whole answer's header has every step that was reached, a stream's those before it began."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from support import NAPS, SLEEP_QUESTION, UNSURE_QUESTION, FixedKnowledge, chat_body, events, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from support import Server

ALL = ["route", "queue", "retrieve", "first", "total"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(
        EchoEngine(EchoScript(first_token_delay_s=0.02)), knowledge=FixedKnowledge({"sleep": (NAPS,)})
    ) as running:
        yield running


def steps(response: httpx2.Response) -> dict[str, float]:
    """Milliseconds by name, in the header's order; fails on a header that is not of the standard's form."""
    said = response.headers["server-timing"]
    assert re.fullmatch(r"\w+;dur=\d+\.\d(, \w+;dur=\d+\.\d)*", said)
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", said)}


def test_a_whole_answer_tells_all_of_it_as_its_object_does(server: Server) -> None:
    response = server.post(model="auto")
    told = steps(response)
    assert list(told) == ALL == list(steps(server.http.post("/query", json={"query": SLEEP_QUESTION})))
    timings = response.json()["expert_router"]["timings"]
    assert list(told.values()) == pytest.approx([seconds * 1000 for seconds in timings.values()], abs=0.11)
    assert told["route"] + 20 <= told["first"] <= told["total"]


def test_a_stream_tells_what_is_known_when_it_begins_and_the_rest_at_its_end(server: Server) -> None:
    response = server.post(model="auto", stream=True)
    timings = events(response.text)[-2]["expert_router"]["timings"]
    assert None not in timings.values()
    known = {name: pytest.approx(timings[f"{name}_s"] * 1000, abs=0.11) for name in ("route", "queue", "retrieve")}
    assert steps(response) == known


def test_a_question_that_is_asked_back_waits_for_nobody(server: Server) -> None:
    assert list(steps(server.http.post("/query", json={"query": UNSURE_QUESTION}))) == ["route", "total"]


def test_a_stream_that_still_waits_for_its_slot_begins_without() -> None:
    """The headers leave after a second, though the engine has not taken the prompt."""
    with serve(EchoEngine(EchoScript(hang_after_tokens=1)), max_running=1) as busy, busy.asking():
        eventually(lambda: busy.dispatcher.admission.running == 1)
        with busy.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
            assert list(steps(response)) == ["route"]
