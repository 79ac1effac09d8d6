from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
from test_serve import serving, worker_ids

from expert_router.keys import changing, new_key
from support import chat_body, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine


def test_a_keys_limits_hold_for_all_workers_together(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, secret = new_key("laura", requests_per_minute=4)
    with changing(path) as keys:
        keys[key.id] = key
    keyed = replace(cli, settings={**cli.settings, "EXPERT_ROUTER_SERVER__KEYS": str(path)})
    with serving(keyed, "--workers", "2") as server:

        def ask() -> int:
            headers = {"authorization": f"Bearer {secret}"}
            url = f"{server.url}/v1/chat/completions"
            return httpx2.post(url, json=chat_body(), headers=headers, timeout=10, trust_env=False).status_code

        eventually(lambda: len(worker_ids(server)) == 2, within_s=20)
        first, second = worker_ids(server)
        said = []
        for stopped in (first, second):  # the other one answers
            eventually(lambda: httpx2.get(f"{server.url}/health/live", trust_env=False).status_code == 200)
            os.kill(stopped, signal.SIGSTOP)
            said += [ask() for _ in range(3)]
            os.kill(stopped, signal.SIGCONT)
        assert said == [200, 200, 200, 200, 429, 429]
