"""Processes of this machine as the kernel tells of them: one that ends while it is looked at has simply ended."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def lives(pid: int) -> bool:
    """A process that has ended, and that nobody has asked how, does not."""
    return pid in _table([pid])


def children_of(pid: int) -> set[int]:
    """Those that still run."""
    return {child for child, about in _table().items() if about[0] == pid}


def descendants(pid: int) -> set[int]:
    """All processes below one that still run."""
    table = _table()
    below, found = {pid}, set[int]()
    while below:
        below = {child for child, about in table.items() if about[0] in below}
        found |= below
    return found


def members_of(group: int) -> set[int]:
    """A process group's that still run."""
    return {pid for pid, about in _table().items() if about[1] == group}


def told_of(pid: int, file: str) -> str:
    """``maps``, ``cmdline`` and the like; nothing of a process that has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_text("utf-8", "replace")
    return ""


def _table(pids: Iterable[int] | None = None) -> dict[int, tuple[int, int]]:
    """Parent and group of all that still run."""
    table = {}
    for pid in (int(folder.name) for folder in Path("/proc").glob("[0-9]*")) if pids is None else pids:
        state, parent, group, *_ = [*told_of(pid, "stat").rpartition(")")[2].split()[:3], "Z", "", ""]
        if state != "Z":
            table[pid] = (int(parent), int(group))
    return table
