"""Load on a running server over HTTP: clients that each ask a question, read the answer to its end, and ask the next.

The server may be any that speaks OpenAI's chat completions; of ours the decision and the cache are noted too. A closed
loop: a slow server is asked less often, so that what is measured is what so many people at once experience. An open one
asks at a rate, however slow the server is: so it can be overloaded, and refuse.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

from expert_router.errors import ConfigError
from expert_router.types import AUTO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from expert_router.data.labelled import LabelledQuestion

DONE = "[DONE]"
PAUSE_S = 1.0
"""After a request that failed, unless the server names a time."""
MAX_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Target:
    """``ours``: the server is an expert-router, which says who was chosen and what was kept."""

    url: str
    model: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Asking:
    """``wait_s`` is sent as ``Prefer: wait``; 0 leaves it to the server."""

    max_tokens: int
    ignore_eos: bool = False
    no_cache: bool = False
    wait_s: int = 0


@dataclass(slots=True)
class Sample:
    """One request: seconds since it was sent, and between pieces of text (``gaps_s``).

    ``status`` is 0 where no answer began; ``error`` says why there is none, or no whole one. ``experts`` are the
    decision's, ``None`` where it is not told or the question was asked back.
    """

    question: LabelledQuestion
    status: int = 0
    error: str = ""
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    tokens: int = 0
    decided: bool = False
    experts: frozenset[str] | None = None
    cache: frozenset[str] = frozenset()
    retry_after_s: float = PAUSE_S

    @property
    def from_cache(self) -> bool:
        return self.cache == {"hit"}

    @property
    def token_s(self) -> float:
        """Seconds a token after the first, on average; 0 of an answer in one piece."""
        return sum(self.gaps_s) / max(1, self.tokens - 1)

    @property
    def right(self) -> bool:
        """Whether exactly those were chosen whom the question needs."""
        return self.experts == self.question.experts


@dataclass(slots=True)
class Level:
    """What so many clients experienced. ``seconds`` are until the last answer's end.

    With ``rate``, requests a second, ``clients`` are those that waited for an answer at once, the most that there were.
    """

    clients: int
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    rate: float | None = None


def open_client(url: str, silence_s: float, key: str | None = None) -> httpx2.AsyncClient:
    """``url`` is the server's, with ``/v1`` or without; ``key`` is what it asks for.

    Raises ``ConfigError`` for what is no address.
    """
    try:
        address = httpx2.URL(url.rstrip("/").removesuffix("/v1") + "/v1")
    except httpx2.InvalidURL:
        address = httpx2.URL()
    if address.scheme not in {"http", "https"} or not address.host:
        raise ConfigError(f"--url takes an address like http://127.0.0.1:8000, not {url!r}.")
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx2.Timeout(silence_s, connect=5.0)
    return httpx2.AsyncClient(base_url=address, timeout=timeout, limits=limits, headers=headers, trust_env=False)


async def find_target(client: httpx2.AsyncClient, model: str | None) -> Target:
    """Whom to ask for what: ``model``, or ours to choose, or the first that another server has.

    Raises ``ConfigError`` where no server is, where it is of another kind, and where it has no such model.
    """
    url = str(client.base_url).removesuffix("/").removesuffix("/v1")
    try:
        response = await client.get("models")
    except httpx2.HTTPError as error:
        why = _short(str(error) or type(error).__name__)
        raise ConfigError(
            f"No server answers at {url} ({why}): start one (expert-router serve), or name its --url."
        ) from error
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        raise ConfigError(f"{url} needs a key: --key, or EXPERT_ROUTER_KEY.")
    try:
        entries = {entry["id"]: entry.get("owned_by") for entry in response.json()["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        status = response.status_code
        raise ConfigError(f"{url} is no OpenAI-compatible server: /v1/models answered HTTP {status}.") from None
    if model is not None and model not in entries:
        raise ConfigError(f"{url} has no model {model!r}. Known: {', '.join(entries) or 'none'}.")
    if not entries:
        raise ConfigError(f"{url} has no models.")
    ours = "expert-router" in entries.values() and AUTO in entries
    return Target(url, model or (AUTO if ours else next(iter(entries))), ours)


async def ask(client: httpx2.AsyncClient, target: Target, how: Asking, question: LabelledQuestion) -> Sample:
    """Ask and read to the end; what goes wrong is in the sample."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": question.query}],
        "max_tokens": how.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if how.ignore_eos else {}),
    }
    headers = {"cache-control": "no-store"} if how.no_cache else {}
    if how.wait_s:
        headers["prefer"] = f"wait={how.wait_s}"
    sample, started = Sample(question), time.perf_counter()
    try:
        async with client.stream("POST", "chat/completions", json=body, headers=headers) as response:
            sample.status = response.status_code
            if response.status_code == httpx2.codes.OK:
                await _read(response, sample, started)
            else:
                sample.error = _complaint(await response.aread())
                sample.retry_after_s = _seconds(response.headers.get("retry-after"))
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        sample.error = _short(str(error) or type(error).__name__)
    sample.total_s = time.perf_counter() - started
    return sample


async def measure_level(
    level: Level,
    ask_one: Callable[[LabelledQuestion], Any],
    questions: Iterator[LabelledQuestion],
    *,
    requests: int | None,
    seconds: float | None,
    done: Callable[[], object],
) -> None:
    """Fill ``level``, which holds what was measured also when this is cancelled.

    Until ``requests`` were made, or until ``seconds`` have passed and what ran then is over. A client whose request
    failed waits before it makes the next one, as the server asks it to.
    """
    numbers = itertools.count() if requests is None else iter(range(requests))
    started = time.perf_counter()

    async def one_client() -> None:
        for _ in numbers:
            if seconds is not None and time.perf_counter() - started >= seconds:
                return
            sample = await ask_one(next(questions))
            level.samples.append(sample)
            level.seconds = time.perf_counter() - started
            done()
            if sample.error:
                await asyncio.sleep(sample.retry_after_s)

    async with asyncio.TaskGroup() as clients:
        for _ in range(level.clients):
            clients.create_task(one_client())


async def measure_rate(
    level: Level,
    ask_one: Callable[[LabelledQuestion], Any],
    questions: Iterator[LabelledQuestion],
    *,
    requests: int | None,
    seconds: float | None,
    seed: int,
    done: Callable[[], object],
) -> None:
    """``measure_level``, with requests sent at ``level.rate`` whoever still waits: Poisson arrivals, each one's own.

    Nobody comes back after a refusal.
    """
    assert level.rate is not None
    pauses, started, due, running = random.Random(seed), time.perf_counter(), 0.0, 0  # noqa: S311 - arrivals

    async def one_client(question: LabelledQuestion) -> None:
        nonlocal running
        running += 1
        level.clients = max(level.clients, running)
        level.samples.append(await ask_one(question))
        level.seconds = time.perf_counter() - started
        running -= 1
        done()

    async with asyncio.TaskGroup() as clients:
        for _ in itertools.count() if requests is None else range(requests):
            due += pauses.expovariate(level.rate)
            if seconds is not None and due >= seconds:
                return
            await asyncio.sleep(started + due - time.perf_counter())
            clients.create_task(one_client(next(questions)))


async def _read(response: httpx2.Response, sample: Sample, started: float) -> None:
    """An answer's events into the sample; how it broke off, if it did."""
    previous, pieces = 0.0, 0
    async for event in httpx2.EventSource(response):
        if event.data == DONE:
            sample.tokens = sample.tokens or pieces
            return
        try:
            chunk = json.loads(event.data)
            if "error" in chunk:
                sample.error = _complaint(event.data)
                return
            if _note(sample, chunk):
                now = time.perf_counter() - started
                if pieces:
                    sample.gaps_s.append(now - previous)
                else:
                    sample.first_token_s = now
                previous, pieces = now, pieces + 1
        except (ValueError, KeyError, TypeError, AttributeError):
            sample.error = f"This is no piece of a chat completion: {_short(event.data)}"
            return
    sample.error = "The answer ended before it was whole."


def _note(sample: Sample, chunk: dict[str, Any]) -> bool:
    """What a chunk says besides text; whether it has text that a model wrote, which headings are not."""
    about = chunk.get("expert_router") or {}
    if "decision" in about:
        sample.decided = True
        kind, experts = about["decision"]["kind"], about["decision"]["experts"]
        sample.experts = None if kind == "clarify" else frozenset(experts)
    sample.cache |= frozenset((about.get("cache") or {}).values())
    sample.tokens = (chunk.get("usage") or {}).get("completion_tokens") or sample.tokens
    choices = chunk.get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content")) and "section" not in about


def _complaint(body: bytes | str) -> str:
    try:
        error = json.loads(body)["error"]
        return _short(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError):
        return _short(body if isinstance(body, str) else body.decode("utf-8", "replace"))


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or PAUSE_S))
    except ValueError:  # a date
        return PAUSE_S


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"
