"""The gateway measurement's upstream, and its client, before it and before servers that are worse."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import httpx2
import pytest
from upstream import serve_bytes

from expert_router.errors import EngineError
from expert_router.evaluation.fake_upstream import WORDS
from expert_router.evaluation.gateway import Way, measure_gateways, wait_until_it_answers
from expert_router.evaluation.gateway_processes import upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
ONCE = {"clients": 1, "streamed": False, "rounds": 1, "seconds": 0.05}
DELAY_S = 0.03


@pytest.fixture(scope="module")
def fixed() -> Iterator[Way]:
    with upstream() as (port, is_alive):
        yield Way("direct", port, "fixed", is_alive)


def test_the_upstream_is_one_that_clients_understand(fixed: Way) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{fixed.port}/v1/", trust_env=False) as client:
        assert client.get("models").json()["data"][0]["id"] == "fixed"
        whole = client.post("chat/completions", json=BODY).json()
        assert whole["choices"][0]["message"]["content"].split() == list(WORDS)
        asked = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        events = client.post("chat/completions", json=asked).text.split("\n\n")
    assert sum('"delta": {"content"' in event for event in events) == len(WORDS)
    assert '"completion_tokens": 16' in events[-3]
    assert events[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_slow_gateway_adds_is_what_it_waits(fixed: Way, streamed: bool) -> None:
    async with _delaying(fixed.port) as slow:
        ways = [fixed, Way("slow", slow, "fixed", lambda: True)]
        direct, delayed = await measure_gateways(ways, ["a", "b"], clients=2, streamed=streamed, rounds=2, seconds=0.3)
    assert (direct.way, direct.added_ms, direct.errors) == ("direct", (0.0, 0.0), 0)
    assert min(delayed.added_ms[0], delayed.added_first_ms[0]) >= DELAY_S * 900
    assert delayed.answers_per_s <= 2 / DELAY_S < direct.answers_per_s


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "HTTP 500"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nalpha", "alpha"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nalpha", "closed"),
    ],
)
async def test_what_is_no_whole_answer_is_none(answer: bytes, said: str) -> None:
    async with serve_bytes(answer) as url:
        way = Way("bad", int(url.removesuffix("/v1").rpartition(":")[2]), "m", lambda: True)
        with pytest.raises(EngineError, match=f"bad gave no whole answer: .*{said}"):
            await measure_gateways([way], ["Hello"], **ONCE)


async def test_who_does_not_come_up_is_waited_for_no_longer_than_said() -> None:
    with pytest.raises(EngineError, match=r"absent cannot be measured: .*failed"):
        await wait_until_it_answers(Way("absent", 9, "m", lambda: True), "Hello", 0.2)
    async with asyncio.timeout(5):
        with pytest.raises(EngineError, match="it is not there"):
            await wait_until_it_answers(Way("dead", 9, "m", lambda: False), "Hello", 60)


@asynccontextmanager
async def _delaying(port: int) -> AsyncIterator[int]:
    """A gateway that passes everything on, what it was asked later than it could."""
    connections: set[asyncio.Task[None]] = set()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(delay_s)
            writer.write(data)
        writer.close()
        await writer.wait_closed()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(cast("asyncio.Task[None]", asyncio.current_task()))
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passed_on(reader, forth, DELAY_S), passed_on(back, writer, 0.0))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await asyncio.wait_for(asyncio.gather(*connections), 5.0)
