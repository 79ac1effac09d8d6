"""Hours in minutes: every kind of client at once on a server, and whether it holds more than before when they are gone.

Memory may not grow, neither that of all processes together nor that of one of them (``growth``). Slots, sockets and
tasks must be back where they were when nobody asked yet, but everything had been used once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2

from expert_router.errors import EngineError
from expert_router.evaluation.growth import FLAT, Growth, growth_of
from expert_router.evaluation.holding import holding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from expert_router.data.labelled import LabelledQuestion

WARM_UP_ROUND = 0.1
"""Of the measured time."""
EVERY_S = 1.0
PAUSE_S = 0.2
"""Of a client that was refused."""
SETTLE_S = 15.0
"""So long the server may take to notice that everybody has left."""
ADD_EVERY_S = 20.0
GUEST = "soak_guest"
OVERSIZED_BYTES = 2_000_000
TOO_LONG_WORDS = 12_000
SHORT, LONG = 8, 160
"""Tokens of an answer."""
ALL = "all processes"
WARM_UP, MEASURED = "warm-up", "measured"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server and its processes hold. ``s`` are seconds of the run; ``engine`` is what runs in its models.

    ``requests`` were over by then; ``by_process`` is memory in bytes by pid, the server's ``pid`` among them.
    """

    s: float
    memory_bytes: int
    processes: int
    threads: int
    files: int
    sockets: int
    tasks: int
    running: int
    waiting: int
    engine: int
    requests: int = 0
    pid: int = 0
    by_process: dict[int, int] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        return self.running + self.waiting + self.engine


@dataclass(slots=True)
class Soak:
    """``ends`` counts by client and by what became of its request. ``before`` and ``after`` are of an idle server."""

    samples: list[Footprint] = field(default_factory=list)
    ends: dict[str, dict[str, int]] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    """One example each."""
    before: Footprint | None = None
    after: Footprint | None = None
    warm_up_s: float = 0.0

    def count(self, client: str, end: str) -> None:
        of_client = self.ends.setdefault(client, {})
        of_client[end] = of_client.get(end, 0) + 1

    @property
    def requests(self) -> int:
        return sum(sum(ends.values()) for ends in self.ends.values())

    @property
    def growth(self) -> Growth:
        """Of all processes together."""
        requests, memory = [each.requests for each in self.samples], [each.memory_bytes for each in self.samples]
        return growth_of(ALL, requests, memory)

    def by_process(self) -> dict[str, list[tuple[int, int]]]:
        """Requests that were over and bytes, of each process that was there for at least half of the samples."""
        found: dict[str, list[tuple[int, int]]] = {}
        for sample in self.samples:
            for pid, memory in sample.by_process.items():
                name = "server" if pid == sample.pid else f"model's process {pid}"
                found.setdefault(name, []).append((sample.requests, memory))
        return {name: points for name, points in found.items() if len(points) * 2 >= len(self.samples)}

    def growths(self) -> list[Growth]:
        """Of all together, then of each process."""
        each = [growth_of(name, *zip(*points, strict=True)) for name, points in self.by_process().items()]
        return [self.growth, *each]

    def complaints(self) -> list[str]:
        """Why it did not pass; none where it did. Raises ``EngineError`` where it was not measured to its end."""
        if self.before is None or self.after is None or not self.samples:
            raise EngineError("The soak was not measured to its end.")
        found = []
        found += [f"{growth.name}: {growth}" for growth in self.growths() if not growth.flat]
        if self.after.slots:
            found.append(f"{self.after.slots} slots are taken though nobody asks")
        for name in ("sockets", "tasks"):
            was, now = getattr(self.before, name), getattr(self.after, name)
            if now > was:
                found.append(f"{now} {name} where there were {was}")
        found += [f"{client}: {example}" for client, example in self.unexpected.items()]
        return found


async def footprint(client: httpx2.AsyncClient, s: float) -> Footprint:
    """Of the server that ``client`` leads to, which runs on this machine. Raises ``ConfigError`` where it does not."""
    said = (await client.get("/health/ready")).json()
    process, requests, engine = said["process"], said["requests"], said["engine"]
    models = engine.get("models", {"": engine})
    held = await asyncio.to_thread(holding_of, process["pid"])
    return Footprint(
        s,
        **held,
        tasks=process["tasks"],
        running=requests["running"],
        waiting=requests["waiting"],
        engine=sum(model.get("running", 0) for model in models.values()),
        pid=process["pid"],
    )


@dataclass(frozen=True, slots=True)
class Crowd:
    """``clients`` at once, each with a new question again and again; ``open_client`` opens a client of the server.

    Without an ``admin_key`` no experts come and go.
    """

    open_client: Callable[[], httpx2.AsyncClient]
    questions: Iterator[LabelledQuestion]
    clients: int
    seed: int
    admin_key: str | None

    async def ask(self, seconds: float, result: Soak) -> None:
        until = time.monotonic() + seconds
        chance = random.Random(self.seed)  # noqa: S311 - who asks what next is no secret
        async with self.open_client() as http, asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._visitor(http, chance, until, result))
            if self.admin_key is not None:
                group.create_task(self._guests(http, self.admin_key, until, result))

    async def _visitor(self, http: httpx2.AsyncClient, chance: random.Random, until: float, result: Soak) -> None:
        while time.monotonic() < until:
            (name,) = chance.choices(list(VISITS), weights=[weight for _, weight in VISITS.values()])
            end = await _end_of(VISITS[name][0](http, next(self.questions)), name, result)
            if end in {"429", "503"}:
                await asyncio.sleep(PAUSE_S)

    async def _guests(self, http: httpx2.AsyncClient, admin_key: str, until: float, result: Soak) -> None:
        for number in itertools.count():
            await _end_of(_guest(http, admin_key, number), "an expert comes and goes", result)
            if (left := until - time.monotonic()) <= ADD_EVERY_S:
                return
            await asyncio.sleep(min(ADD_EVERY_S, left))


async def soak(crowd: Crowd, *, seconds: float, sampled: Callable[[str, Footprint], object]) -> Soak:
    """Load twice: to warm up, and, once the server was left alone, to measure.

    ``sampled`` sees each sample, with what it is of: ``WARM_UP`` or ``MEASURED``.

    The warm-up ends when memory would grow by less than is allowed at the rate of its last tenth, or when it took as
    long as what is measured: a model's attention cache takes memory page by page until it is full.
    """
    result, warm_up_s, asked = Soak(), 0.0, 0
    async with crowd.open_client() as watching:
        while warm_up_s < seconds:
            watched = partial(_watch_warm_up, sampled, warm_up_s, asked)
            warm_up = await _watched(crowd, watching, seconds * WARM_UP_ROUND, Soak(), watched)
            warm_up_s += seconds * WARM_UP_ROUND
            asked += warm_up.requests
            result.unexpected |= warm_up.unexpected
            if all(growth.share <= FLAT * WARM_UP_ROUND for growth in warm_up.growths()):
                break
        result.warm_up_s = warm_up_s
        result.before = await _settled(watching)
        await _watched(crowd, watching, seconds, result, partial(sampled, MEASURED))
        result.after = await _settled(watching, result.before)
    return result


def _watch_warm_up(sampled: Callable[[str, Footprint], object], began_s: float, asked: int, sample: Footprint) -> None:
    """A round's sample as one of all rounds."""
    sampled(WARM_UP, replace(sample, s=began_s + sample.s, requests=asked + sample.requests))


async def _watched(
    crowd: Crowd, watching: httpx2.AsyncClient, seconds: float, result: Soak, sampled: Callable[[Footprint], object]
) -> Soak:
    started = time.monotonic()
    asking = asyncio.create_task(crowd.ask(seconds, result))
    while not (await asyncio.wait({asking}, timeout=min(EVERY_S, seconds / 10)))[0]:
        sample = await footprint(watching, time.monotonic() - started)
        result.samples.append(replace(sample, requests=result.requests))
        sampled(result.samples[-1])
    await asking
    return result


async def _end_of(visit: Any, name: str, result: Soak) -> str:
    """How it ended, counted; what ought not to happen is kept as an example."""
    try:
        end = str(await visit)
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        end = f"broken off ({type(error).__name__})"
    result.count(name, end)
    if end not in EXPECTED[name] | {"429"}:
        result.unexpected.setdefault(name, end)
    return end


async def _stream(
    http: httpx2.AsyncClient, question: LabelledQuestion, max_tokens: int, leave_after: int | None = None
) -> str:
    body = _body(question, stream=True, max_tokens=max_tokens)
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx2.codes.OK:
            await response.aread()
            return str(response.status_code)
        pieces, ended = 0, "no end"
        async for line in response.aiter_lines():
            pieces += line.startswith("data: ")
            if leave_after is not None and pieces > leave_after:
                return "left"
            if line == "data: [DONE]":
                ended = "whole"
            elif line.startswith('data: {"error"'):
                ended = "error event"
    return ended


async def _whole(http: httpx2.AsyncClient, question: LabelledQuestion, **changes: Any) -> str:
    return str((await http.post("/v1/chat/completions", json=_body(question, **changes))).status_code)


async def _leaver(http: httpx2.AsyncClient, question: LabelledQuestion) -> str:
    return await _stream(http, question, LONG, leave_after=len(question.query) % 5)


async def _oversized(http: httpx2.AsyncClient, question: LabelledQuestion) -> str:
    """Refused before it was read, so that the connection may be closed under whoever still sends it."""
    try:
        return await _whole(http, question, user="x" * OVERSIZED_BYTES)
    except httpx2.TransportError:
        return "413"


async def _guest(http: httpx2.AsyncClient, admin_key: str, number: int) -> str:
    """An expert is added, asked and taken away."""
    headers = {"authorization": f"Bearer {admin_key}"}
    about = {
        "name": GUEST,
        "title": "Bees",
        "description": f"How bees live and make honey, edition {number}.",
        "examples": [f"How do bees {verb}?" for verb in ("make honey", "find flowers", "dance", "spend the winter")],
    }
    added = await http.post("/v1/experts", json={**about, "replace": True}, headers=headers)
    if added.status_code != httpx2.codes.CREATED:
        return f"added: {added.status_code} {added.text[:200]}"
    asked = await http.post("/v1/chat/completions", json={**_question("How do bees make wax?"), "model": GUEST})
    removed = await http.delete(f"/v1/experts/{GUEST}", headers=headers)
    return f"asked: {asked.status_code}, removed: {removed.status_code}"


def _question(text: str, model: str = "auto") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": SHORT}


def _body(question: LabelledQuestion, **changes: Any) -> dict[str, Any]:
    return {**_question(question.query), **changes}


VISITS: dict[str, tuple[Callable[[httpx2.AsyncClient, LabelledQuestion], Any], int]] = {
    "short stream": (lambda http, question: _stream(http, question, SHORT), 30),
    "long stream": (lambda http, question: _stream(http, question, LONG), 10),
    "whole": (_whole, 25),
    "leaves midway": (_leaver, 15),
    "new each time": (lambda http, question: _whole(http, question, temperature=1.0), 10),
    "oversized": (_oversized, 2),
    "longer than the context": (
        lambda http, question: _whole(http, question, messages=_question("word " * TOO_LONG_WORDS)["messages"]),
        1,
    ),
    "invalid": (lambda http, question: _whole(http, question, messages="none"), 4),
    "unknown model": (lambda http, question: _whole(http, question, model="nobody"), 3),
}
"""What clients do, and how often."""
EXPECTED: dict[str, set[str]] = {
    "short stream": {"whole"},
    "long stream": {"whole"},
    "whole": {"200"},
    "leaves midway": {"left", "whole"},
    "new each time": {"200"},
    "oversized": {"413"},
    "longer than the context": {"400", "200"},  # the echo engine has no limit, and routing may ask back
    "invalid": {"400"},
    "unknown model": {"404"},
    "an expert comes and goes": {"asked: 200, removed: 200"},
}


async def _settled(client: httpx2.AsyncClient, like: Footprint | None = None) -> Footprint:
    """Once nothing runs and what is held does not change any more, or is as it was; or when it takes too long."""
    deadline = time.monotonic() + SETTLE_S
    last = await footprint(client, 0.0)
    while time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        now = await footprint(client, 0.0)
        held = [(each.slots, each.sockets, each.tasks) for each in (last, now)]
        as_before = like is None or (now.sockets <= like.sockets and now.tasks <= like.tasks)
        if held[0] == held[1] and now.slots == 0 and as_before:
            return now
        last = now
    return last
