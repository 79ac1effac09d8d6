"""A clock that jumps, below a whole server: times of day are shown and kept, but nothing waits or ends by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from server_process import ServerProcess, serving

from expert_router.decision_log import read_decisions

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")


@pytest.fixture
def offset(tmp_path: Path) -> Path:
    """What is written into it is what the server's clock is ahead."""
    path = tmp_path / "offset"
    path.write_text("+0\n")
    return path


@pytest.fixture
def server(home: Path, tmp_path: Path, offset: Path) -> Iterator[ServerProcess]:
    variables = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",  # its name until 0.9.8
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    log, path = tmp_path / "log", str(tmp_path / "decisions.sqlite")
    with serving(home, log, profile="echo", variables=variables, DECISION_LOG__PATH=path) as running:
        yield running


@pytest.mark.parametrize("jump", ["+400d", "-400d"])
def test_what_is_kept_stays_and_nobody_waits(server: ServerProcess, offset: Path, tmp_path: Path, jump: str) -> None:
    first = server.post().json()
    offset.write_text(f"{jump}\n")
    again = server.post()
    assert abs(again.json()["created"] - first["created"]) > 300 * 86_400, "the clock did not jump"
    assert again.json()["expert_router"]["cache"] == {"sleep": "miss"}, "another day may have another answer"
    streamed = server.post(stream=True, messages=[{"role": "user", "content": "Why do we sleep?"}])
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert again.elapsed.total_seconds() < 2
    decision = again.json()["expert_router"]["decision"]["id"]
    feedback = {"decision": decision, "rating": "up"}
    rated = httpx2.post(f"{server.url}/v1/feedback", json=feedback, timeout=10, trust_env=False)
    assert rated.status_code == 204
    offset.write_text("+0\n")
    assert server.post().json()["expert_router"]["cache"] == {"sleep": "hit"}
    assert server.ready()["status"] == "ready"
    assert server.end() == 0
    assert len(read_decisions(tmp_path / "decisions.sqlite")) == 4
