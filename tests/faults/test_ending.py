"""A server that is asked to end while many clients are being answered: each of them gets an end."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import httpx2
import pytest
from server_process import ServerProcess, ask_many, serving

from processes import descendants, lives, told_of
from support import eventually, until

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.evaluation.http_load import Sample

CLIENTS = 24
SOME, MANY = 300, 7000
"""Tokens: of answers that are over within the grace, and of some that are not."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tokens", [SOME, MANY])
async def test_every_client_gets_an_end(home: Path, tmp_path: Path, workers: int, tokens: int) -> None:
    arguments = ["--workers", str(workers)] if workers > 1 else []
    with serving(home, tmp_path / "log", *arguments, SERVER__SHUTDOWN_GRACE_S="4" if tokens == SOME else "1") as server:
        await asyncio.to_thread(_all_ready, server, workers)
        family = descendants(server.process.pid)
        asked_at = 0.0

        async def end(asked: list[asyncio.Task[Sample]]) -> None:
            nonlocal asked_at
            await until(lambda: any(each.done() for each in asked) or _running(server) >= CLIENTS // workers // 2, 20)
            server.process.send_signal(signal.SIGTERM)
            asked_at = time.monotonic()
            await until(lambda: _refused(server), within_s=3)
            if tokens == MANY:
                assert not all(each.done() for each in asked), "it was not under load any more"

        samples = await ask_many(server.url, CLIENTS, tokens, end)
        assert await asyncio.to_thread(server.process.wait, 15) == 0
        assert time.monotonic() - asked_at < 8
    whole = [sample for sample in samples if not sample.error]
    told = [sample for sample in samples if "shut down" in sample.error or "shutting down" in sample.error]
    assert len(whole) + len(told) == CLIENTS, {sample.error for sample in samples}
    assert (len(whole) == CLIENTS) if tokens == SOME else told
    assert all(sample.tokens == tokens for sample in whole)
    assert "Traceback" not in server.log.read_text()
    await until(lambda: not [pid for pid in family if lives(pid)], within_s=5)


def _all_ready(server: ServerProcess, workers: int) -> None:
    eventually(lambda: sum(map(_has_model, descendants(server.process.pid))) >= 2 * workers, 60)


def _has_model(pid: int) -> bool:
    return "/prepared/" in told_of(pid, "maps")


def _running(server: ServerProcess) -> int:
    return int(server.ready()["requests"]["running"])


def _refused(server: ServerProcess) -> bool:
    try:
        httpx2.get(f"{server.url}/health/ready", timeout=1, trust_env=False)
    except httpx2.HTTPError:
        return True
    return False
