"""How much a key may ask for in a minute, and at once, of all processes together that answer on one address.

Token buckets (Turner, "New directions in communications", 1986): a bucket holds a minute's worth and is filled evenly.
A request is taken from it when it comes; tokens are when they are known, which may leave less than nothing: what was
used too much is waited for before the next request.
"""

from __future__ import annotations

import time
from contextlib import aclosing, contextmanager
from math import ceil, inf
from typing import TYPE_CHECKING

from expert_router.errors import RateLimitError
from expert_router.types import Done, Text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from expert_router.api.shared_limits import SharedLimits, Tally
    from expert_router.keys import Key
    from expert_router.types import ChatRequest, Event

MINUTE_S = 60.0
CHARACTERS_A_TOKEN = 4
"""Of a prompt whose tokens nobody counted, because its client left."""
SOONEST_S = 1.0


class Bucket:
    """``limit`` a minute, all of it at once at first."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE_S)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        self._level = self.level - amount

    def said(self) -> list[float]:
        """What another of the same limit, by the same clock, goes on with."""
        return [self.limit, self.level, self._at]

    def go_on(self, said: list[float]) -> None:
        if said[:1] == [self.limit]:
            _, self._level, self._at = said

    def wait_s(self, level: float) -> float:
        """Until it holds so much."""
        return max(0.0, (level - self.level) * MINUTE_S / self.limit)


class KeyLimits:
    """What is left of one key's limits; with a ``tally`` of what all processes that have it leave."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic, tally: Tally | None = None) -> None:
        self._running = 0
        self._running_elsewhere = 0
        self._clock = clock
        self._tally = tally
        self._buckets: dict[str, Bucket] = {}
        self._set(key)

    def follow(self, key: Key) -> None:
        """Go on with these limits; one that stays as it was keeps what is left of it."""
        if key is not self._key:
            self._set(key)

    @contextmanager
    def request(self) -> Iterator[None]:
        """One that runs. Raises ``RateLimitError`` when it may not."""
        with self._together():
            requests, tokens = self._buckets.get("requests"), self._buckets.get("tokens")
            if self._running + self._running_elsewhere >= (self._key.max_running or inf):
                raise _refusal(f"{self._key.max_running} requests at once", SOONEST_S)
            if tokens is not None and tokens.level < 1:
                raise _refusal(f"{tokens.limit} tokens a minute", tokens.wait_s(1))
            if requests is not None:
                if requests.level < 1:
                    raise _refusal(f"{requests.limit} requests a minute", requests.wait_s(1))
                requests.take(1)
            self._running += 1
        try:
            yield
        finally:
            with self._together():
                self._running -= 1

    def charge(self, tokens: int) -> None:
        with self._together():
            if "tokens" in self._buckets:
                self._buckets["tokens"].take(tokens)

    async def metered(self, events: AsyncGenerator[Event], request: ChatRequest) -> AsyncGenerator[Event]:
        """The same events, charged when they end; who leaves before is charged for the pieces until then."""
        used, pieces = None, 0
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Done):
                        used = event.usage.prompt_tokens + event.usage.completion_tokens
                    pieces += isinstance(event, Text)
                    yield event
        finally:
            self.charge(pieces + _prompt(request) if used is None else used)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's (https://platform.openai.com/docs/guides/rate-limits); ``reset`` is until all is there again."""
        return [
            (f"x-ratelimit-{name}-{what}".encode(), str(value).encode())
            for what, bucket in self._buckets.items()
            for name, value in (
                ("limit", bucket.limit),
                ("remaining", max(0, int(bucket.level))),
                ("reset", f"{ceil(bucket.wait_s(bucket.limit))}s"),
            )
        ]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Go on with what all processes have used, and let them go on with what this one uses."""
        if self._tally is None or not (self._buckets or self._key.max_running):
            yield
            return
        with self._tally.changing() as used:
            for what, bucket in self._buckets.items():
                bucket.go_on(used.get(what, []))
            running: dict[str, int] = used.get("running", {})
            self._running_elsewhere = sum(running.values()) - running.get(self._tally.process, 0)
            yield
            used.update({what: bucket.said() for what, bucket in self._buckets.items()})
            used["running"] = {**running, self._tally.process: self._running}

    def _set(self, key: Key) -> None:
        self._key = key
        wanted = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        before = self._buckets
        self._buckets = {
            what: before[what] if what in before and before[what].limit == limit else Bucket(limit, self._clock)
            for what, limit in wanted.items()
            if limit is not None
        }


class RateLimits:
    """Of all keys that have asked; ``shared`` with other processes."""

    def __init__(self, shared: SharedLimits | None = None) -> None:
        self._shared = shared
        self._by_key: dict[str, KeyLimits] = {}

    def of(self, key: Key) -> KeyLimits:
        limits = self._by_key.get(key.id)
        if limits is None:
            tally = self._shared.of(key.id) if self._shared is not None else None
            limits = self._by_key[key.id] = KeyLimits(key, tally=tally)
        limits.follow(key)
        return limits


def _prompt(request: ChatRequest) -> int:
    return sum(len(message.content) for message in request.messages) // CHARACTERS_A_TOKEN


def _refusal(limit: str, wait_s: float) -> RateLimitError:
    after_s = ceil(max(wait_s, SOONEST_S))
    return RateLimitError(f"This key may have {limit}. Try again in {after_s} s.", retry_after_s=after_s)
