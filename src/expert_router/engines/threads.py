"""How many CPUs this process may really use.

A container that is limited to two CPUs of a sixty-four-core host still sees sixty-four of them. An engine that starts
one thread for each is throttled by the kernel for most of every scheduling period and is slower than with one thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
SMALL_MACHINE_CPUS = 4
"""Up to here inference takes every CPU; above, one stays free for the event loop and the router."""


def inference_threads(
    configured: int | None, cgroup_root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP, visible: int | None = None
) -> int:
    """The thread count of an engine: ``configured`` as it is, or what the machine allows."""
    if configured is not None:
        return configured
    usable = usable_cpus(cgroup_root, membership, visible)
    return usable if usable <= SMALL_MACHINE_CPUS else usable - 1


def usable_cpus(cgroup_root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP, visible: int | None = None) -> int:
    """The smaller of the CPUs that the scheduler offers (``visible``; ``None`` asks it) and the cgroup's quota.

    A fractional quota is rounded down: threads of one operator wait for each other, so that a thread more than the
    quota stalls all of them. At least 1.
    """
    offered = scheduler_cpus() if visible is None else visible
    quota = quota_cpus(cgroup_root, membership)
    return max(1, offered if quota is None else min(offered, int(quota)))


def scheduler_cpus() -> int:
    """The CPUs that the scheduler offers to this thread: its affinity where the system has one, else all."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus(cgroup_root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """The tightest CPU quota on this process, in CPUs (2.5), from cgroup v2 or v1; ``None`` when there is none.

    A quota binds everything below it, so the process's own group and all its parents count.
    """
    quotas = [
        quota
        for group in _own_groups(cgroup_root, membership)
        for quota in (_quota_v2(group), _quota_v1(group))
        if quota is not None
    ]
    return min(quotas, default=None)


def _own_groups(cgroup_root: Path, membership: Path) -> Iterator[Path]:
    """The folders that describe this process's CPU groups, innermost first, in each hierarchy up to its root.

    A container often sees its own group mounted as the root while the listed path still counts from the host's
    root. Such a path does not exist here; its parents lead to the root, which is the right one.
    """
    for hierarchy, path in _memberships(membership):
        root = cgroup_root / hierarchy
        group = PurePosixPath(path.lstrip("/"))
        if ".." not in group.parts:  # the group lies outside of this namespace's root
            yield from (root / part for part in (group, *group.parents))
        else:
            yield root


def _memberships(membership: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a hierarchy's folder below the cgroup root and the process's path in it."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines or ["0::/", "1:cpu:/"]:
        _, controllers, path = line.split(":", 2)  # a hierarchy's number, what it controls, where the process is
        if not controllers:
            yield from (("", path), ("unified", path))  # v2 alone, and v2 beside v1
        elif "cpu" in controllers.split(","):
            yield from ((name, path) for name in {controllers, "cpu"})


def _quota_v2(group: Path) -> float | None:
    fields = _fields(group / "cpu.max")  # "max 100000" or "250000 100000": microseconds in each period
    return _ratio(*fields) if len(fields) == 2 else None  # noqa: PLR2004 - quota and period


def _quota_v1(group: Path) -> float | None:
    quota, period = _fields(group / "cpu.cfs_quota_us"), _fields(group / "cpu.cfs_period_us")
    return _ratio(quota[0], period[0]) if quota and period else None


def _fields(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except OSError:  # absent in the root group, on other systems and where it is not readable: no limit is known
        return []


def _ratio(quota: str, period: str) -> float | None:
    """Quota over period; ``None`` for v2's ``max``, v1's ``-1`` and anything that is not a positive number."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return None
