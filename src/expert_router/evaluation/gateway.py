"""What a gateway adds to an answer: clients ask it and what is behind it by turns, one question after the other each.

The client is HTTP/1.1 by hand on connections that stay open, so that it is not what bounds a measurement. Requests go
to the first of the ways, the upstream itself, then to the others, then round again: what else the machine does hits all
of them alike, and what a gateway adds is taken within a round.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import EngineError
from expert_router.evaluation.fake_upstream import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GRACE_S = 30.0
"""How long a round may last beyond its time: whoever is slower does not answer."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_FIRST, _LAST = WORDS[0].encode(), WORDS[-1].encode()


@dataclass(frozen=True, slots=True)
class Way:
    """Somebody to ask: a server on this machine, and the name of the model to ask there."""

    name: str
    port: int
    model: str


@dataclass(frozen=True, slots=True)
class GatewayResult:
    """Medians over rounds: answers a second, and milliseconds (50th and 99th percentile) until an answer was whole.

    ``first_ms`` is until the answer's first word, ``added_ms`` and ``added_first_ms`` are what came on top of the first
    way in the same round. ``errors`` counts, over all rounds, what was not a whole answer.
    """

    way: str
    clients: int
    streamed: bool
    answers: int
    errors: int
    answers_per_s: float
    ms: tuple[float, float]
    added_ms: tuple[float, float]
    first_ms: tuple[float, float]
    added_first_ms: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Round:
    errors: int
    answers: int
    answers_per_s: float
    ms: tuple[float, float]
    first_ms: tuple[float, float]


async def measure_gateways(
    ways: Sequence[Way],
    questions: Sequence[str],
    *,
    clients: int,
    streamed: bool,
    rounds: int,
    seconds: float,
    most: int = 100_000,
) -> list[GatewayResult]:
    """One result a way; a round of a way ends after ``seconds`` or ``most`` answers.

    Raises ``EngineError`` when somebody does not answer at all.
    """
    asked: dict[str, Iterator[bytes]] = {
        way.name: itertools.cycle([_request(way, question, streamed) for question in questions]) for way in ways
    }
    measured: dict[str, list[_Round]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            measured[way.name].append(await _round(way, asked[way.name], clients, seconds, most))
    return [_summary(way.name, clients, streamed, measured[way.name], measured[ways[0].name]) for way in ways]


async def wait_until_it_answers(way: Way, question: str, within_s: float, running: Callable[[], bool]) -> None:
    """Ask again and again. Raises ``EngineError`` when there is no answer in time, or it is not ``running``."""
    deadline, error = time.monotonic() + within_s, "it is not there"
    while running() and time.monotonic() < deadline:
        try:
            async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                connection = await _connect(way)
                try:
                    await connection.ask(_request(way, question, streamed=False))
                finally:
                    connection.close()
                return
        except (OSError, TimeoutError, EngineError) as failed:
            error = str(failed) or error
        await asyncio.sleep(0.1)
    raise EngineError(f"{way.name} cannot be measured: {error}.")


async def _round(way: Way, requests: Iterator[bytes], clients: int, seconds: float, most: int) -> _Round:
    samples: list[tuple[float, float]] = []
    failures: list[str] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = await _connect(way)
        try:
            while time.perf_counter() < end and len(samples) + len(failures) < most:
                try:
                    samples.append(await connection.ask(next(requests)))
                except EngineError as error:
                    failures.append(error.message)
                    connection.close()
                    connection = await _connect(way)
        finally:
            connection.close()

    started = time.perf_counter()
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            await asyncio.gather(*(client() for _ in range(clients)))
    except TimeoutError:
        raise EngineError(f"{way.name} did not answer {clients} clients within {GRACE_S:g} s.") from None
    except OSError as error:
        raise EngineError(f"{way.name} takes no connections: {error}.") from error
    if not samples:
        raise EngineError(f"{way.name} gave no whole answer: {failures[0]}")
    per_s = len(samples) / (time.perf_counter() - started)
    first_ms, ms = (_percentiles(values) for values in zip(*samples, strict=True))
    return _Round(len(failures), len(samples), per_s, ms, first_ms)


def _summary(
    way: str, clients: int, streamed: bool, rounds: Sequence[_Round], upstream: Sequence[_Round]
) -> GatewayResult:
    pairs = list(zip(rounds, upstream, strict=True))

    def middle(value: Callable[[_Round], tuple[float, float]]) -> tuple[float, float]:
        return median(value(each)[0] for each in rounds), median(value(each)[1] for each in rounds)

    def added(value: Callable[[_Round], tuple[float, float]]) -> tuple[float, float]:
        p50, p99 = (median(value(each)[place] - value(base)[place] for each, base in pairs) for place in (0, 1))
        return p50, p99

    return GatewayResult(
        way,
        clients,
        streamed,
        sum(each.answers for each in rounds),
        sum(each.errors for each in rounds),
        median(each.answers_per_s for each in rounds),
        middle(lambda each: each.ms),
        added(lambda each: each.ms),
        middle(lambda each: each.first_ms),
        added(lambda each: each.first_ms),
    )


class _Connection(asyncio.Protocol):
    """One question at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._read = bytearray()
        self._asked = self._first = 0.0
        self._answer: asyncio.Future[tuple[float, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[float, float]:
        """Seconds until the answer's first word and its end. Raises ``EngineError`` for what is no whole answer."""
        assert self._transport is not None
        self._read.clear()
        self._first = 0.0
        self._answer = asyncio.get_running_loop().create_future()
        self._asked = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._read += data
        if self._answer is None or self._answer.done():
            return
        if not self._first and _FIRST in self._read:
            self._first = now
        if not self._is_whole():
            return
        if self._first and _LAST in self._read and self._read.startswith(b"HTTP/1.1 200"):
            self._answer.set_result((self._first - self._asked, now - self._asked))
        else:
            self._answer.set_exception(EngineError(f"It answered {bytes(self._read[:300])!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EngineError(f"It hung up: {exc or 'in the middle of an answer'}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _is_whole(self) -> bool:
        """A body of announced length, or one in chunks."""
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return False
        length = _LENGTH.search(self._read, 0, head)
        if length is None:
            return self._read.endswith(b"\r\n0\r\n\r\n")
        return len(self._read) >= head + 4 + int(length[1])


async def _connect(way: Way) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", way.port)
    return connection


def _request(way: Way, question: str, streamed: bool) -> bytes:
    asked = {"model": way.model, "messages": [{"role": "user", "content": question}], "stream": streamed}
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{way.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(values) * 1000, [50, 99])
    return float(p50), float(p99)
