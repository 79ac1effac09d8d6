"""What a gateway adds to an answer: clients ask it and what is behind it by turns, one question after the other each.

Questions go to the first of the ways, the upstream itself, then to the others, then round again: what else the machine
does hits all of them alike, and what a gateway adds is taken within a round.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import httpx2
from pydantic_core import to_json

from expert_router.engines.http_client import HTTPClient, HTTPClientError
from expert_router.errors import EngineError
from expert_router.evaluation.fake_upstream import WORDS
from expert_router.evaluation.percentiles import p50_and

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SILENCE_S = 30.0
FIRST, LAST = WORDS[0].encode(), WORDS[-1].encode()


@dataclass(frozen=True, slots=True)
class Way:
    """Somebody to ask: a server on this machine, the model to ask there, and whether it runs."""

    name: str
    port: int
    model: str
    running: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class GatewayResult:
    """Medians over rounds: answers a second, and milliseconds (50th and 99th percentile) until an answer was whole.

    ``first_ms`` is until its first word; ``added_*`` came on top of the first way in the same round. ``errors`` counts,
    over all rounds, what was no whole answer.
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


async def measure_gateways(
    ways: Sequence[Way], questions: Sequence[str], *, clients: int, streamed: bool, rounds: int, seconds: float
) -> list[GatewayResult]:
    """One result a way, of rounds of so many seconds. Raises ``EngineError`` when somebody gives no whole answer."""
    bodies = {way.name: itertools.cycle([_body(way, each, streamed) for each in questions]) for way in ways}
    taken: dict[str, list[_Round]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            taken[way.name].append(await _round(way, bodies[way.name], clients, seconds))
    return [_result(way.name, clients, streamed, taken[way.name], taken[ways[0].name]) for way in ways]


async def wait_until_it_answers(way: Way, question: str, within_s: float) -> None:
    """Ask again and again. Raises ``EngineError`` when there is no answer in time, or it does not run any more."""
    deadline, error = time.monotonic() + within_s, "it is not there"
    while way.running() and time.monotonic() < deadline:
        client = _client(way)
        try:
            await _ask(client, _body(way, question, streamed=False))
        except HTTPClientError as failed:
            error = str(failed) or error
        else:
            return
        finally:
            client.close()
        await asyncio.sleep(0.1)
    raise EngineError(f"{way.name} cannot be measured: {error}.")


@dataclass(frozen=True, slots=True)
class _Round:
    answers: int
    errors: int
    answers_per_s: float
    ms: tuple[float, float]
    first_ms: tuple[float, float]


async def _round(way: Way, bodies: Iterator[bytes], clients: int, seconds: float) -> _Round:
    samples: list[tuple[float, float]] = []
    failures: list[str] = []
    client = _client(way)

    async def ask_on() -> None:
        while time.perf_counter() < end:
            try:
                samples.append(await _ask(client, next(bodies)))
            except HTTPClientError as error:
                failures.append(str(error))
                await asyncio.sleep(0.01)

    started = time.perf_counter()
    end = started + seconds
    try:
        await asyncio.gather(*(ask_on() for _ in range(clients)))
    finally:
        client.close()
    if not samples:
        raise EngineError(f"{way.name} gave no whole answer: {failures[0]}")
    per_s = len(samples) / (time.perf_counter() - started)
    first_ms, ms = (p50_and(99, [1000 * s for s in seconds]) for seconds in zip(*samples, strict=True))
    return _Round(len(samples), len(failures), per_s, ms, first_ms)


async def _ask(client: HTTPClient, body: bytes) -> tuple[float, float]:
    """Seconds until the answer's first word and until its end."""
    asked, first, said = time.perf_counter(), 0.0, b""
    async with client.request("POST", "chat/completions", body) as response, aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            said += piece
            if not first and FIRST in said:
                first = time.perf_counter() - asked
    if response.status != httpx2.codes.OK or not first or LAST not in said:
        raise HTTPClientError(f"it answered HTTP {response.status} {said[:300]!r}")
    return first, time.perf_counter() - asked


def _client(way: Way) -> HTTPClient:
    url = httpx2.URL(f"http://127.0.0.1:{way.port}/v1")
    return HTTPClient(url, {}, connect_timeout_s=SILENCE_S, read_timeout_s=SILENCE_S)


def _body(way: Way, question: str, streamed: bool) -> bytes:
    return to_json({"model": way.model, "messages": [{"role": "user", "content": question}], "stream": streamed})


def _result(way: str, clients: int, streamed: bool, rounds: list[_Round], upstream: list[_Round]) -> GatewayResult:
    def middle(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        return median(p50 for p50, _ in pairs), median(p99 for _, p99 in pairs)

    def added(pairs: list[tuple[float, float]], base: list[tuple[float, float]]) -> tuple[float, float]:
        return middle([(a[0] - b[0], a[1] - b[1]) for a, b in zip(pairs, base, strict=True)])

    whole, first = [each.ms for each in rounds], [each.first_ms for each in rounds]
    return GatewayResult(
        way,
        clients,
        streamed,
        sum(each.answers for each in rounds),
        sum(each.errors for each in rounds),
        median(each.answers_per_s for each in rounds),
        middle(whole),
        added(whole, [each.ms for each in upstream]),
        middle(first),
        added(first, [each.first_ms for each in upstream]),
    )
