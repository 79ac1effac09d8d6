"""What comes from another process or person, offered damaged: event streams, upstreams, folders, the decision log."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import zlib
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest
from damage import damaged, fuzzed, only_raises
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz_texts import PDF

from expert_router.decision_log import DecisionStore, LoggedDecision, read_decisions, stamp
from expert_router.engines.events import MAX_EVENT_BYTES, Event, EventParser
from expert_router.engines.http_client import BrokenAnswerError, HTTPClient
from expert_router.engines.openai_http import OpenAIHTTPEngine
from expert_router.errors import ConfigError, DataError, EngineError, ExpertRouterError, InvalidRequestError
from expert_router.knowledge.corpus import MOST_BYTES, read_corpus
from expert_router.live.proposal import Proposal, TaughtExample, check
from expert_router.types import GenerationParams, Message
from support import SLEEP

STREAM = (
    b': keep-alive\n\ndata: {"choices": [{"index": 0, "delta": {"content": "A sta"}, "finish_reason": null}]}\n\n'
    b'event: message\r\ndata: {"choices": [{"index": 0, "delta": {"content": "ge."}, "finish_reason": "stop"}]}\r\n\r\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + f"{len(STREAM):x}\r\n".encode()
    + STREAM
    + b"\r\n0\r\n\r\n"
)


# Events


@given(damaged(STREAM), st.data())
@fuzzed
def test_events_are_the_same_however_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    in_pieces = EventParser()
    found: list[Event] = [event for piece in pieces for event in in_pieces.feed(piece)]
    assert found == EventParser().feed(stream)
    assert all(isinstance(event.text, str) for event in found)


# Upstreams


async def answered(answer: bytes) -> str:
    """What the engine makes of a server that sends these bytes and closes. Raises what it raises."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        engine = OpenAIHTTPEngine(url, None, lambda _: "model", 2.0, 2.0)
        try:
            stream = engine.stream(SLEEP, [Message("user", "Hi")], GenerationParams())
            return "".join([chunk.text async for chunk in stream])
        finally:
            await engine.close()


@given(damaged(ANSWER))
@fuzzed
def test_a_damaged_answer_of_an_upstream_is_a_typed_error(answer: bytes) -> None:
    with suppress(ExpertRouterError):
        asyncio.run(answered(answer))


@pytest.mark.parametrize("line", [b"data: ", b"data: x\n", b": ", b""], ids=["one", "many", "comment", "name"])
def test_an_event_without_end_is_broken_off(line: bytes) -> None:
    event = line * (2 * MAX_EVENT_BYTES // len(line)) if line.endswith(b"\n") else line + b"x" * 2 * MAX_EVENT_BYTES
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {10 * len(event)}\r\n\r\n"
    with pytest.raises(EngineError, match=f"longer than {MAX_EVENT_BYTES} bytes"):
        asyncio.run(answered(head.encode() + event))


async def test_trailers_without_end_are_broken_off() -> None:
    sent = 0

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        while not writer.is_closing():
            writer.write(f"x-{sent}: {'y' * 1000}\r\n".encode())
            sent += 1
            try:
                await writer.drain()
            except ConnectionError:
                break
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        url = httpx2.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        client = HTTPClient(url, {}, connect_timeout_s=2.0, read_timeout_s=5.0)

        async def read() -> None:
            async with asyncio.timeout(10), client.request("GET", "") as response:
                async for _ in response.pieces():
                    pass

        with pytest.raises(BrokenAnswerError, match="beside its body"):
            await read()
        client.close()


# Folders of knowledge


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("# Secret\n\nThe password.\n", "utf-8")
    folder = tmp_path / "knowledge"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nText.\n", "utf-8")
    (folder / "inside.md").symlink_to("a.md")
    assert len(read_corpus(folder)) == 2
    (folder / "b.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(DataError, match=r"b\.md leads out of"):
        read_corpus(folder)


def test_a_folder_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.md").write_text("# A\n\nText.\n", "utf-8")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert [passage.title for passage in read_corpus(tmp_path / "linked")] == ["A"]


@pytest.mark.parametrize("suffix", ["md", "txt", "pdf"])
def test_a_gigabyte_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / f"a.{suffix}").open("wb") as file:
        file.truncate(1024**3)
    with pytest.raises(DataError, match=f"larger than {MOST_BYTES} bytes"):
        read_corpus(tmp_path)


def test_a_pdf_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"0" * 1024**2) for _ in range(300)) + packer.flush()
    stream = f"4 0 obj<</Filter/FlateDecode/Length {len(packed)}>>stream\n".encode() + packed
    bomb = PDF.replace(b"4 0 obj<</Length 35>>stream\nBT /F 12 Tf (REM is a stage) Tj ET", stream)
    only_raises(lambda path: read_corpus(path.parent), tmp_path / "a.pdf", bomb, DataError)


def test_a_text_that_says_to_be_a_pdf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("MZ not a PDF", "utf-8")
    with pytest.raises(DataError, match="not a readable PDF"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("name", ["../a.md", "/etc/a.md", "x/../../a.md", "", "a\0.md"])
def test_knowledge_that_would_be_written_elsewhere_is_refused(name: str) -> None:
    proposal = Proposal("tea", examples=(TaughtExample("What is tea?"),), knowledge={name: b"# Tea\n\nLeaves.\n"})
    with pytest.raises(InvalidRequestError, match="no file below"):
        check(proposal, ())


# The decision log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "decisions.sqlite"
    store = DecisionStore(path, retention_days=None, max_rows=10)
    for number in range(5):
        store.add(
            LoggedDecision(
                str(number), stamp(), "q", ("h",), "r", "v", None, "single", ("sleep",), None, {"sleep": None}
            )
        )
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()


@given(data=st.data())
@settings(fuzzed, max_examples=40)
def test_a_damaged_log_is_read_or_refused(log: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(damaged(log))
    folder = Path(tempfile.mkdtemp(dir=tmp_path))  # what an example leaves beside its file is not the next one's
    only_raises(read_decisions, folder / "read.sqlite", content, DataError, ConfigError)
    store = DecisionStore(folder / "checked.sqlite", retention_days=None, max_rows=10)
    only_raises(lambda _: store.check(), store.path, content, ConfigError)
