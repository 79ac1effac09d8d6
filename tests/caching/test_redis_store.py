"""A real redis-server, also one that is killed, hangs, is full or holds what nobody put there."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from expert_router.caching import redis_store
from expert_router.caching.engine import CachingEngine
from expert_router.caching.redis_store import RETRY_AFTER_S, TIMEOUT_S, RedisStore
from expert_router.engines.echo import EchoEngine
from expert_router.errors import ConfigError
from expert_router.serving.build import answer_store
from expert_router.settings import CacheSettings
from expert_router.types import Chunk, GenerationParams, Message
from support import SLEEP, eventually, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="redis-server is not installed (Debian: redis-server)"
)


class RedisServer:
    """On a port of its own, without files; ``look`` is a client to look into it."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
        self._process = subprocess.Popen([*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def look(self) -> Iterator[Redis]:
        with Redis(port=self.port) as client:
            yield client

    def names(self) -> list[str]:
        with self.look() as client:
            return sorted(name.decode() for name in client.keys())  # noqa: SIM118

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
        return False


class Clock:
    """Seconds that pass when it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    """Running and empty."""
    if running._process is None:
        running.start()
    with running.look() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    return running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(server: RedisServer, clock: Clock) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.url, 60.0, clock)
    yield store
    await store.close()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.message) for r in caplog.records if r.name == redis_store.__name__]


DOWN = ("WARNING", "Redis cannot be used; requests go on, uncached")
BACK = ("INFO", "Redis can be used again")


async def test_what_one_process_puts_another_gets(server: RedisServer, store: RedisStore) -> None:
    other = RedisStore(server.url, 60.0)
    await store.put("a", b"\x00answer\n")
    assert (await other.get("a"), await other.get("b")) == (b"\x00answer\n", None)
    await other.put("a", b"")
    assert await store.get("a") == b""
    assert store.status() == other.status() == {"store": "redis", "reachable": True, "errors": 0}
    await other.close()


async def test_an_answer_ends_with_its_time(server: RedisServer) -> None:
    store = RedisStore(server.url, 0.05)
    await store.put("a", b"answer")
    with server.look() as client:
        (name,) = client.keys()
        assert 0 < client.pttl(name) <= 50
    await until(lambda: server.names() == [])
    assert await store.get("a") is None
    await store.close()


async def test_what_another_version_of_the_code_kept_is_not_found(server: RedisServer, store: RedisStore) -> None:
    await store.put("a", b"answer")
    (name,) = server.names()
    prefix, version, key = name.rsplit(":", 2)
    assert (prefix, key) == ("expert-router:answers", "a")
    assert version == redis_store.package_sha256()[:12]
    with server.look() as client:
        client.rename(name, f"{prefix}:{'0' * 12}:a")
    assert await store.get("a") is None


@pytest.mark.parametrize("value", [b"", b"answer", b"\xff\xfe", b"expert-router:answers:0:a\nanswer"])
async def test_what_is_not_what_was_put_is_none(server: RedisServer, store: RedisStore, value: bytes) -> None:
    await store.put("a", b"answer")
    (name,) = server.names()
    with server.look() as client:
        client.set(name, value)
    assert await store.get("a") is None
    assert store.status()["errors"] == 0


async def test_the_answer_to_another_question_is_none(server: RedisServer, store: RedisStore) -> None:
    await store.put("a", b"answer a")
    await store.put("b", b"answer b")
    name_a, name_b = server.names()
    with server.look() as client:
        client.copy(name_a, name_b, replace=True)
    assert (await store.get("a"), await store.get("b")) == (b"answer a", None)


async def test_a_value_of_another_kind_fails_and_no_request_with_it(
    server: RedisServer, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("a", b"answer")
    (name,) = server.names()
    with server.look() as client:
        client.delete(name)
        client.lpush(name, "a list")
    with caplog.at_level(logging.INFO):
        assert await store.get("a") is None
    assert (said(caplog), store.status()["errors"]) == ([DOWN], 1)


async def test_a_killed_server_is_missed_with_one_warning_and_used_again_when_it_is_back(
    server: RedisServer, store: RedisStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await store.put("a", b"answer")
        server.kill()
        assert [await store.get("a") for _ in range(3)] == [None] * 3
        await store.put("a", b"answer")
        assert (said(caplog), store.status()) == ([DOWN], {"store": "redis", "reachable": False, "errors": 1})
        clock.now += RETRY_AFTER_S
        assert [await store.get("a") for _ in range(3)] == [None] * 3
        assert (said(caplog), store.status()["errors"]) == ([DOWN], 2), "tried once more, said no more"
        server.start()
        assert await store.get("a") is None, "not before its time"
        assert said(caplog) == [DOWN]
        clock.now += RETRY_AFTER_S
        assert await store.get("a") is None
        assert (said(caplog), store.status()["reachable"]) == ([DOWN, BACK], True)
        await store.put("a", b"answer")
        assert await store.get("a") == b"answer"


async def test_a_server_that_was_started_again_meanwhile_is_used_without_a_word(
    server: RedisServer, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("a", b"answer")
    server.kill()
    server.start()
    with caplog.at_level(logging.INFO):
        await store.put("a", b"new answer")
        assert await store.get("a") == b"new answer"
    assert said(caplog) == []


async def test_a_wrong_password_costs_nothing_but_the_answers(
    server: RedisServer, store: RedisStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with server.look() as client:
        client.config_set("requirepass", "secret")
        client.client_kill_filter(_type="normal", skipme=True)
        assert await store.get("a") is None
        assert (said(caplog), store.status()["reachable"]) == ([DOWN], False)
        client.config_set("requirepass", "")
    clock.now += RETRY_AFTER_S
    await store.get("a")
    await store.put("a", b"answer")
    assert await store.get("a") == b"answer"


async def test_a_server_that_hangs_is_not_waited_for(
    server: RedisServer, store: RedisStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("a", b"answer")
    server.signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert await asyncio.gather(*(store.get("a") for _ in range(40))) == [None] * 40
        assert TIMEOUT_S <= time.monotonic() - started < 10 * TIMEOUT_S
        assert said(caplog) == [DOWN]
        started = time.monotonic()
        assert await store.get("a") is None
        assert time.monotonic() - started < TIMEOUT_S, "left alone"
    finally:
        server.signal(signal.SIGCONT)
    clock.now += RETRY_AFTER_S
    assert await store.get("a") == b"answer"
    assert await store.get("b") is None, "a late reply to the question before is not taken for this one's"


async def test_a_full_server_still_gives_what_it_has(
    server: RedisServer, store: RedisStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("a", b"answer")
    with server.look() as client:
        client.config_set("maxmemory", 1)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await store.put("b", b"another")
            assert await store.get("a") == b"answer"
            clock.now += RETRY_AFTER_S
        assert (said(caplog), store.status()["errors"]) == ([DOWN], 3)
        with server.look() as client:
            client.config_set("maxmemory", 0)
        await store.put("b", b"another")
        assert said(caplog) == [DOWN, BACK]


async def test_a_server_that_was_never_there_costs_nothing_but_the_answers(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    store = RedisStore(f"redis://:secret@127.0.0.1:{port}/0", 60.0)
    await store.put("a", b"answer")
    assert await store.get("a") is None
    assert said(caplog) == [DOWN]
    assert "secret" not in caplog.text + "".join(str(vars(record)) for record in caplog.records)
    await store.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://127.0.0.1:6379", "redis://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"cache.redis_url must look like redis://"):
        answer_store(CacheSettings(store="redis", redis_url=url))


# The engine with it


def caching(server: RedisServer, clock: Clock) -> CachingEngine:
    return CachingEngine(EchoEngine(), RedisStore(server.url, 60.0, clock))


async def ask(engine: CachingEngine) -> list[Chunk]:
    """An answer; returns when it is kept, where it can be."""
    params = GenerationParams()
    chunks = [chunk async for chunk in engine.stream(SLEEP, [Message("user", "What is REM sleep?")], params)]
    await asyncio.gather(*engine._tasks)
    return chunks


async def test_processes_share_their_answers_and_lose_none_when_redis_is_gone(
    server: RedisServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = caching(server, clock), caching(server, clock)
    first, second = await ask(one), await ask(other)
    assert (first[-1].cache, second[-1].cache, first[:-1] == second[:-1]) == ("miss", "hit", True)
    server.kill()
    assert [(await ask(one))[-1].cache for _ in range(3)] == ["miss"] * 3
    assert said(caplog) == [DOWN]
    server.start()
    clock.now += RETRY_AFTER_S
    assert [(await ask(engine))[-1].cache for engine in (one, other, one)] == ["miss", "hit", "hit"]
    await asyncio.gather(one.close(), other.close())


async def test_who_asks_at_once_asks_redis_and_the_engine_once(server: RedisServer, clock: Clock) -> None:
    with server.look() as client:
        client.config_resetstat()
    engine = caching(server, clock)
    answers = await asyncio.gather(*(ask(engine) for _ in range(10)))
    assert sorted(str(chunks[-1].cache) for chunks in answers) == ["miss", *["shared"] * 9]
    with server.look() as client:
        assert client.info("commandstats")["cmdstat_get"]["calls"] == 1  # type: ignore[index]
    assert engine.status()["finished"] == 1
    await engine.close()


@pytest.mark.parametrize("value", [b"[]", b'["half', b'["no end"]', b"{}"])
async def test_what_is_no_answer_is_asked_for_anew_and_replaced(
    server: RedisServer, clock: Clock, value: bytes
) -> None:
    engine = caching(server, clock)
    await ask(engine)
    (name,) = server.names()
    with server.look() as client:
        client.set(name, f"{name}\n".encode() + value)
    assert [(await ask(engine))[-1].cache for _ in range(2)] == ["miss", "hit"]
    assert engine.status()["cache"]["unreadable"] == 1  # type: ignore[index]
    await engine.close()
