"""A disk that is full below a running server: what is written there is missing, and nobody's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
from server_process import ADMIN_KEY, file_limit, serving

from expert_router.decision_log import read_decisions

if TYPE_CHECKING:
    from pathlib import Path

ROOM_BYTES = 64 * 1024
"""Of each file; the log of the server is one of them."""


def test_answers_go_on_while_decisions_and_changes_fail_with_a_reason(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    settings = {"DECISION_LOG__PATH": str(path), "CACHE__STORE": "none"}
    with serving(home, tmp_path / "log", profile="echo", limit=file_limit(ROOM_BYTES), **settings) as server:
        long = "Why do we sleep? " * 200
        for number in range(30):
            answer = server.post(messages=[{"role": "user", "content": f"{number} {long}"}])
            assert (answer.status_code, answer.json()["choices"][0]["finish_reason"]) == (200, "length")
        log = server.ready()["decision_log"]
        assert log["failed"] > 0
        assert log["written"] > 0
        examples = [f"{number}. {'How do bees dance? ' * 200}" for number in range(30)]
        bees = {"name": "bees", "title": "Bees", "description": "How bees live.", "examples": examples}
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        added = httpx2.post(f"{server.url}/v1/experts", json=bees, headers=headers, timeout=20, trust_env=False)
        assert added.status_code >= 400, added.text
        assert "cannot be written" in added.json()["error"]["message"]
        assert server.ready()["experts"] == ["cars", "sleep"]
        assert server.post().status_code == 200
        assert server.end() == 0
    assert len(read_decisions(path)) == log["written"]
