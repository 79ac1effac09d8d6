"""What a process and all below it hold, as the kernel counts it: memory by process, threads, files, sockets."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from expert_router.errors import ConfigError

PROPORTIONAL = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class Holding(TypedDict):
    memory_bytes: int
    by_process: dict[int, int]
    processes: int
    threads: int
    files: int
    sockets: int


def holding_of(pid: int) -> Holding:
    """Of the process and its descendants; memory by pid. Raises ``ConfigError`` where there is no such process here."""
    family = family_of(pid)
    if not family:
        raise ConfigError(f"The server's process {pid} is not on this machine: a soak runs beside the server.")
    memory: dict[int, int] = {}
    counts: Counter[str] = Counter()
    for each in family:
        folder = Path(f"/proc/{each}")
        with suppress(OSError):  # one that ended meanwhile
            memory[each] = _memory_of(folder)
            names = [_target(link) for link in (folder / "fd").iterdir()]
            counts["threads"] += sum(1 for _ in (folder / "task").iterdir())
            counts["files"] += len(names)
            counts["sockets"] += sum(name.startswith("socket:") for name in names)
    return {
        "memory_bytes": sum(memory.values()),
        "by_process": memory,
        "processes": len(family),
        "threads": counts["threads"],
        "files": counts["files"],
        "sockets": counts["sockets"],
    }


def family_of(pid: int) -> list[int]:
    """A process and all below it that live."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text("ascii", "replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found, latest = [], [pid] if pid in parents else []
    while latest:
        found += latest
        latest = [child for child, parent in parents.items() if parent in latest]
    return found


def _memory_of(folder: Path) -> int:
    """In bytes: what it shares with others is divided among them, so that a sum counts nothing twice."""
    with suppress(OSError):  # an old kernel, or another user's process
        if (found := PROPORTIONAL.search((folder / "smaps_rollup").read_text("ascii"))) is not None:
            return int(found[1]) * 1024
    return int((folder / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _target(link: Path) -> str:
    with suppress(OSError):
        return str(link.readlink())
    return ""
