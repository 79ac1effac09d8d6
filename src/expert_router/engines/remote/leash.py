"""A program between a server and the child that it must not leave behind; run by its path, with the standard library.

Standard input has the job, a line of JSON, and then nothing for as long as whoever started this lives and wants it. At
its end, which is also that of a starter that was killed, the child and its process group are asked to end, and are
killed after ``grace_s``. A child that ends by itself gives this program its exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1
NOT_FOUND = 127
"""A shell's exit status for a program that is not there."""


def main() -> int:
    job = json.loads(sys.stdin.buffer.readline())
    # What the job sets counts; of what it proposes, what the environment already says.
    environment = {**job["proposed"], **os.environ, **job["set"]}
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, and not SIG_IGN, which the child would inherit
    try:
        child = subprocess.Popen(  # noqa: S603 - the command of the settings
            job["command"],
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there is one thread yet
        )
    except OSError as error:
        print(f"{job['command'][0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - a program's own output
        return NOT_FOUND
    threading.Thread(target=_end_with_starter, args=(child, job["grace_s"]), daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """Should this program be killed, so is the child. Linux has it, others do without."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_starter(child: subprocess.Popen[bytes], grace_s: float) -> None:
    while os.read(sys.stdin.fileno(), 1):  # not by sys.stdin, whose lock the end of the main thread would wait for
        pass
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        os.killpg(0, signal.SIGKILL)  # what is left of the group, and this program


if __name__ == "__main__":
    sys.exit(main())
