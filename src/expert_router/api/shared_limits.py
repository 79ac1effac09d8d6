"""What keys have used, for all processes that answer on one address: a small file for each key, in a folder of theirs.

Nothing that goes wrong with a file reaches a request: the process then counts for itself. Read, changed and written
under the file's lock, some 20 µs, so that nobody waits for a disk or for another process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

MOST_BYTES = 4096
TRIES, PAUSE_S = 20, 0.0005
"""For the lock: whoever has it gives it back at once, unless it was stopped just then."""


class Tally:
    """Of one key. ``process`` tells this one from the others."""

    def __init__(self, path: Path, process: int) -> None:
        self._path = path
        self._file: int | None = None
        self.process = str(process)

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """What is written there; it is written back as the block leaves it, unless that raises.

        Empty at first, and where it cannot be read.
        """
        file = self._locked()
        if file is None:
            yield {}
            return
        try:
            used = _read(file)
            yield used
            with suppress(OSError):  # a full disk: as if this process had not asked
                written = json.dumps(used).encode()
                os.pwrite(file, written, 0)
                os.ftruncate(file, len(written))
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _locked(self) -> int | None:
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for _ in range(TRIES):
                with suppress(BlockingIOError):
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return self._file
                time.sleep(PAUSE_S)
        except OSError as error:
            logger.warning("this process counts a key's limits for itself", extra={"reason": error.strerror})
        return None


class SharedLimits:
    """Of all keys. ``process`` is this one's number among them; what one that died here had running is forgotten."""

    def __init__(self, folder: Path, process: int) -> None:
        self._folder = folder
        self._process = process
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
        for path in folder.glob("*"):
            tally = self.of(path.name)
            with tally.changing() as used:
                used.get("running", {}).pop(str(process), None)
            tally.close()

    def of(self, key: str) -> Tally:
        """``key`` is its id."""
        return Tally(self._folder / key, self._process)


def _read(file: int) -> dict[str, Any]:
    try:
        used = json.loads(os.pread(file, MOST_BYTES, 0))
    except (OSError, ValueError):  # new, or its writer was killed
        return {}
    return used if isinstance(used, dict) else {}
