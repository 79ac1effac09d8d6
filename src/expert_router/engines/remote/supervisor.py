"""A server that runs as a child of this one: started, waited for, started again when it dies, never left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from expert_router.engines.backoff import FIRST_PAUSE_S, doubled, jittered
from expert_router.engines.remote import leash

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Starts in a row that came to nothing; then it is given up."""
SETTLED_S = 60.0
"""Who was healthy for so long has come to something."""
POLL_S = 0.5
PROGRESS_EVERY_S = 10.0
LAST_ERRORS = 200
LAST_ERRORS_S = 60.0
"""Of the errors so shortly before its end the first is the cause; the others report that one failed."""
SIGNALLED = 128
"""And the signal: an exit status as shells and the leash give it."""
LAST_WORDS_S = 1.0
_SEVERITY = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}
_LEVEL = re.compile(rf"\b({'|'.join(_SEVERITY)})\b")
_REASON = re.compile(r"\b[A-Z]\w*(Error|Exception): |\b[Ee]rror: ")


@dataclass(frozen=True, slots=True)
class ChildProgram:
    """What to start. ``set`` goes into its environment, ``proposed`` only where that says nothing of it.

    ``secret`` is taken out of what it prints. ``usual_start`` says how long it takes to become healthy.
    """

    name: str
    command: Sequence[str]
    usual_start: str
    set: Mapping[str, str] = field(default_factory=dict)
    proposed: Mapping[str, str] = field(default_factory=dict)
    secret: str = ""
    start_timeout_s: float = 600.0
    grace_s: float = 10.0


class Supervisor:
    """``healthy`` says whether the child answers as it should. ``first_pause_s`` precedes the second start.

    Its output goes to the log, line by line. It has a process group of its own, which ends with ``stop``, and with this
    process however that ends (``leash``).
    """

    def __init__(
        self,
        program: ChildProgram,
        healthy: Callable[[], Awaitable[bool]],
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._program = program
        self._healthy = healthy
        self._first_pause_s = first_pause_s
        self._poll_s = poll_s
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """Set once it was healthy, or was given up."""
        self._since = 0.0
        self._last_line = ""
        self._errors: deque[tuple[float, str]] = deque(maxlen=LAST_ERRORS)
        self.pid: int | None = None
        """Of its process group's leader."""
        self.starts = 0
        self.state = "not_started"
        """Then ``starting``, ``ready``, ``restarting`` after a death, ``failed`` for good, ``ended``."""
        self.failure: str | None = None
        """How it died last."""

    @property
    def begun(self) -> bool:
        return self._task is not None

    @property
    def unusable(self) -> str | None:
        """Why it does not answer now."""
        program = self._program
        match self.state:
            case "ready":
                return None
            case "starting":
                return f"{program.name} is starting: {self._seconds()} s so far, usually {program.usual_start}"
            case "restarting":
                return f"{program.name} is started again in a moment. {self.failure}"
            case "failed":
                return f"{program.name} was given up after {self.starts} starts. {self.failure}"
            case _:
                return f"{program.name} is not running"

    def begin(self) -> None:
        """Start it, unless it was, and go on to look after it."""
        if self._task is None:
            self._since, self.state = time.monotonic(), "starting"
            self._task = asyncio.create_task(self._look_after())

    async def settled(self) -> bool:
        """Wait until it was healthy once, or was given up; whether it was."""
        await self._settled.wait()
        return self.state != "failed"

    async def stop(self) -> None:
        """End it with all that it started, at the latest after its grace."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.state = "ended"
        self._settled.set()

    async def _look_after(self) -> None:
        in_vain = 0
        while True:
            try:
                healthy_s = await self._live()
            except OSError as error:  # as where there are too many processes
                healthy_s, self.failure = 0.0, f"It could not be started: {error.strerror}."
            in_vain = 1 if healthy_s >= SETTLED_S else in_vain + 1
            about = {"reason": self.failure, "starts": self.starts}
            if in_vain >= ATTEMPTS:
                self.state = "failed"
                logger.error("%s is given up", self._program.name, extra=about)
                self._settled.set()
                return
            self.state = "restarting"
            logger.error("%s died", self._program.name, extra=about)
            await asyncio.sleep(jittered(doubled(in_vain - 1, self._first_pause_s)))

    async def _live(self) -> float:
        """One life of the child, from its start to its end; how long it was healthy, in seconds."""
        self.starts += 1
        self._since, self.state = time.monotonic(), "starting"
        self._last_line = ""
        self._errors.clear()
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds; our own program
            # -P: its folder has modules that are named as the standard library's could be
            [sys.executable, "-P", leash.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid, late, healthy_since = process.pid, False, None
        ended = _ended(process)
        logged = threading.Thread(target=self._log, args=(process.stdout,), daemon=True)
        logged.start()
        try:
            self._hand_over(process)
            if await self._until_healthy(ended):
                logger.info("%s is ready", self._program.name, extra={"s": self._seconds()})
                self.state, healthy_since = "ready", time.monotonic()
                self._settled.set()
                await ended.wait()
            late = not ended.is_set()
        finally:
            await self._end(process, ended)
            await asyncio.to_thread(logged.join, LAST_WORDS_S)
            within = f"It did not answer within {self._program.start_timeout_s:g} s. {self._last_words()}"
            self.failure = within if late else self._death(process.returncode or 0)
            self.pid = None
        return 0.0 if healthy_since is None else time.monotonic() - healthy_since

    def _hand_over(self, process: subprocess.Popen[bytes]) -> None:
        program = self._program
        job = {
            "command": list(program.command),
            "set": dict(program.set),
            "proposed": dict(program.proposed),
            "grace_s": program.grace_s,
        }
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()

    async def _until_healthy(self, ended: asyncio.Event) -> bool:
        """False when it ended, or took too long."""
        program, told_s = self._program, 0.0
        while not await self._healthy():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self._poll_s)
            waited_s = time.monotonic() - self._since
            if ended.is_set() or waited_s > program.start_timeout_s:
                return False
            if waited_s - told_s >= PROGRESS_EVERY_S:
                told_s = waited_s
                logger.info(
                    "%s is starting", program.name, extra={"s": self._seconds(), "usually": program.usual_start}
                )
        return True

    async def _end(self, process: subprocess.Popen[bytes], ended: asyncio.Event) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # the leash ends the group
        with suppress(TimeoutError):
            async with asyncio.timeout(self._program.grace_s + 5):
                await ended.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what the child left of its group when it died by itself
        await ended.wait()

    def _log(self, output: IO[bytes]) -> None:
        """In a thread: whoever holds the child's output open may outlive it."""
        with output:
            for read in output:
                line = read.decode("utf-8", "replace").rstrip()
                line = line.replace(self._program.secret, "***") if self._program.secret else line
                if line:
                    level = _LEVEL.search(line[:80])
                    severity = logging.INFO if level is None else _SEVERITY[level[1]]
                    self._last_line = line
                    if severity != logging.WARNING and _REASON.search(line):
                        self._errors.append((time.monotonic(), line))
                    logger.log(severity, "%s", line, extra={"child": self._program.name})

    def _death(self, status: int) -> str:
        if status == leash.NOT_FOUND:
            return f"There is no program {self._program.command[0]!r}. {self._last_words()}"
        by_signal = -status if status < 0 else status - SIGNALLED
        how = f"by signal {by_signal}" if by_signal > 0 else f"with status {status}"
        return f"It ended {how}. {self._last_words()}"

    def _last_words(self) -> str:
        shortly = time.monotonic() - LAST_ERRORS_S
        errors = [line for said, line in self._errors if said >= shortly]
        if errors:
            return f"Its error: {errors[0][-300:]}"
        return f"Its last words: {self._last_line[-300:]}" if self._last_line else "It said nothing."

    def _seconds(self) -> int:
        return round(time.monotonic() - self._since)


def _ended(process: subprocess.Popen[bytes]) -> asyncio.Event:
    """Set when the process is gone; asyncio's own would wait until nobody holds its output open, too."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait() -> None:
        process.wait()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(event.set)

    threading.Thread(target=wait, daemon=True).start()
    return event
