"""Processes of ours beside this one: how each is started, heard and ended. They end with their connection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOADING_S = 120.0
"""So long at least may a model take to load."""
LOOKS = 20
"""So often in its time is looked whether a step is over. Looks are counted, not seconds: a machine that was suspended,
or a server that was stopped, passes any time in one of them."""
WEIGHTS_PER_S = 5e9
"""So many weights (a byte each) times tokens a slow core takes a second: two operations each, 1e10 of them."""
BESIDE_OTHERS_S = 30.0
"""What else the machine may have to do, between the steps of the smallest model too."""
FAILED_STEPS = 3
"""A pipeline of which so many steps fail in a row stays broken: another is started."""
OUT_OF_MEMORY, BROKEN = 75, 76
"""Exit statuses of the process."""
OOM_SCORE = 500
"""As if it had half of the machine's memory more: where there is none left, a model goes before the server."""


def child(code: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs ``code`` in this Python, and the environment in which it imports what this process does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return [sys.executable, "-P", "-c", code, *arguments], environment


def longest_step_s(size_bytes: int, tokens: int) -> float:
    """What takes longer hangs, where a step reads so many tokens of a prompt; a slow laptop with a long one does not.

    With 256 tokens 40 s for 135 M weights, 400 s for 7 B.
    """
    return BESIDE_OTHERS_S + size_bytes * tokens / WEIGHTS_PER_S


def start(
    code: str,
    job: object,
    cannot: str,
    *,
    loading_s: float,
    died: Callable[[str], None],
    proposed: Mapping[str, str] | None = None,
) -> tuple[Connection[Any, Any], Callable[[], str], Any]:
    """Give ``job`` to a process that runs ``code``: the connection to it, what ends it and says how, and its answer.

    A text as the answer says why the job cannot be done: ``NotReadyError``, which begins with ``cannot``. ``died``
    hears of one that ends before it answers. ``proposed`` goes into its environment where that says nothing of it. A
    command of its own, not ``multiprocessing``: that would run a caller's script again to import it, and a worker of
    ``serve --workers`` may not have children.
    """
    ours, theirs = Pipe()
    command, environment = child(code)
    environment = {**(proposed or {}), **environment}
    with theirs:
        process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment)  # noqa: S603 - our own

    def stop() -> str:
        process.kill()
        return _how_it_ended(process.wait())

    answer: Any = None
    try:
        ours.send(job)
        if speaks(ours, loading_s, lambda: True):
            answer = ours.recv()
        else:
            died(answer := f"it took longer than {loading_s:g} s")
    except (EOFError, OSError):
        how = stop()
        died(how)
        answer = f"its process ended ({how})"
    if isinstance(answer, str):
        stop()
        ours.close()
        raise NotReadyError(f"{cannot}: {answer}")
    return ours, stop, answer


def begin() -> Connection[Any, Any]:
    """In the process: its connection, which is the standard input."""
    for asked_to_end in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server may have streams to end
        signal.signal(asked_to_end, signal.SIG_IGN)
    _offer_to_die()
    return Connection(os.dup(0))


def speaks(connection: Connection[Any, Any], limit_s: float, awaited: Callable[[], bool]) -> bool:
    """Wait until there is something to receive; false when it was awaited for so long in vain."""
    looks = 0
    while not connection.poll(limit_s / LOOKS):
        looks = looks + 1 if awaited() else 0
        if looks >= LOOKS:
            return False
    return True


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed; perhaps the machine's memory is full"
    if status == OUT_OF_MEMORY:
        return "out of memory"
    if status == BROKEN:
        return f"{FAILED_STEPS} steps failed in a row"
    return f"by signal {-status}" if status < 0 else f"with status {status}"


def _offer_to_die() -> None:
    """The server loads another model, but nobody would start another server."""
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):  # not Linux
        score.write_text(str(max(OOM_SCORE, int(score.read_text("ascii")))), "ascii")
