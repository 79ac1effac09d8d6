from __future__ import annotations

import pytest

from expert_router.engines.events import Event, EventParser

STREAM = (
    b": a comment\n\ndata: one\n\ndata:two\ndata:  2\nid: 7\nretry\n\n"
    b"event: error\ndata: k\xc3\xa4se\n\nevent: none\n\ndata\n\n"
)
EVENTS = [Event(b"", b"one"), Event(b"", b"two\n 2"), Event(b"error", "käse".encode()), Event(b"", b"")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_are_the_same_wherever_the_stream_is_cut(end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    for cut in range(len(stream) + 1):
        parser = EventParser()
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == EVENTS


def test_an_event_is_there_with_its_empty_line_and_not_before() -> None:
    parser = EventParser()
    assert parser.feed(b"data: on") == parser.feed(b"e\n") == []
    assert parser.feed(b"\ndata: two") == [Event(b"", b"one")]
    assert parser.feed(b"\n") == []


def test_text_of_bytes_that_are_none() -> None:
    assert Event(b"", b"a\xff").text == "a\ufffd"
