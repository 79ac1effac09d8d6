"""The command line as people use it: a process, its two outputs and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROGRAM = [sys.executable, "-c", "from expert_router.commands import main; main()"]


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    error: str


@dataclass(frozen=True)
class CommandLine:
    """Runs ``expert-router`` in a checkout of its own, with the echo profile unless told otherwise."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment, besides the checkout's place."""

    def run(self, *arguments: str, stdin: str | bytes = "", config: str = "echo", within_s: float = 60) -> Finished:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.command(*arguments, config=config),
            input=content,
            capture_output=True,
            env=self.environment(),
            check=False,
            timeout=within_s,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*arguments, config="echo"),
            stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self.environment(),
        )  # fmt: skip

    def command(self, *arguments: str, config: str) -> list[str]:
        return [*PROGRAM, "--config", config, *arguments]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPERT_ROUTER_")}
        return {**kept, "EXPERT_ROUTER_HOME": str(self.home), **self.settings}


def one_line(finished: Finished) -> str:
    """The single line of an error that was explained: no traceback, nothing on standard output."""
    assert finished.out == ""
    assert finished.error.startswith("expert-router: ")
    assert finished.error.count("\n") == 1
    return finished.error.removeprefix("expert-router: ").rstrip("\n")
