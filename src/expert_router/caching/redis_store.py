"""Answers in Redis, for processes that share them and for longer than one of them lives.

It helps where it is there and is not missed where it is not: no request waits long for it or fails for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

logger = logging.getLogger(__name__)

TIMEOUT_S = 0.25
"""So long a request waits for Redis."""
RETRY_AFTER_S = 5.0
"""So long it is left alone once it failed."""
CONNECTIONS = 1000
"""Opened as they are needed: admission bounds how many requests run."""


class RedisStore:
    """A ``ports.AnswerStore``. Redis itself bounds how much is kept (``maxmemory``) and ends each answer's time.

    ``clock`` gives seconds and never goes back. Raises ``ConfigError`` for an address that is none.
    """

    def __init__(self, url: str, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            # Not a BlockingConnectionPool: it was seen to lose a cancellation, and then to wait for ten seconds.
            pool = ConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                socket_timeout=2 * TIMEOUT_S,  # ours ends it first
                socket_connect_timeout=2 * TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),  # at once, for a connection that an earlier server of this address closed
            )
        except ValueError as error:
            raise ConfigError("cache.redis_url must look like redis://host:port/0.") from error
        self._redis = Redis.from_pool(pool)
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._clock = clock
        self._prefix = f"expert-router:answers:{package_sha256()[:12]}:"
        self._retry_at: dict[Literal["get", "put"], float] = {}
        self._errors = 0

    async def get(self, key: str) -> bytes | None:
        name = self._prefix + key
        value: bytes | None = await self._try("get", lambda: self._redis.get(name))
        # A value says whose it is: the reply to another question would be the one fault that nobody could see.
        own = f"{name}\n".encode()
        return value[len(own) :] if value is not None and value.startswith(own) else None

    async def put(self, key: str, value: bytes) -> None:
        if "get" not in self._retry_at:
            name = self._prefix + key
            named = f"{name}\n".encode() + value
            await self._try("put", lambda: self._redis.set(name, named, px=self._ttl_ms))

    def status(self) -> dict[str, object]:
        return {"store": "redis", "reachable": not self._retry_at, "errors": self._errors}

    async def close(self) -> None:
        await self._redis.aclose()

    async def _try(self, what: Literal["get", "put"], command: Callable[[], Awaitable[T]]) -> T | None:
        """``None`` where Redis cannot do it now. Of what failed lately one request at a time tries again."""
        now = self._clock()
        if now < self._retry_at.get(what, now):
            return None
        if what in self._retry_at:
            self._retry_at[what] = now + RETRY_AFTER_S
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await command()
        except Exception as error:  # noqa: BLE001 - whatever it is, the request goes on
            self._failed(what, error)
            return None
        self._worked(what)
        return result

    def _failed(self, what: Literal["get", "put"], error: Exception) -> None:
        self._errors += 1
        if not self._retry_at:
            why = str(error) or f"no answer within {TIMEOUT_S:g} s"
            logger.warning("Redis cannot be used; requests go on, uncached", extra={"error": why})
        self._retry_at[what] = self._clock() + RETRY_AFTER_S

    def _worked(self, what: Literal["get", "put"]) -> None:
        if self._retry_at.pop(what, None) is not None and not self._retry_at:
            logger.info("Redis can be used again")


def package_sha256() -> str:
    """Of this package's code: what another version kept is not given again, whatever was changed in it."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(
            f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()
