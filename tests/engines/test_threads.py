from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.threads import inference_threads, quota_cpus, scheduler_cpus, usable_cpus

if TYPE_CHECKING:
    from pathlib import Path


class CgroupTree:
    """Folders shaped like /sys/fs/cgroup, and a file like /proc/self/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "self-cgroup"

    def member_of(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def v1(self, group: str, quota_us: int, period_us: int = 100_000) -> None:
        self.write(f"{group}/cpu.cfs_quota_us", str(quota_us))
        self.write(f"{group}/cpu.cfs_period_us", str(period_us))

    def quota(self) -> float | None:
        return quota_cpus(self.root, self.membership)

    def usable(self, visible: int) -> int:
        return usable_cpus(self.root, self.membership, visible)


@pytest.fixture
def tree(tmp_path: Path) -> CgroupTree:
    return CgroupTree(tmp_path)


def test_v2_quota_of_the_own_group(tree: CgroupTree) -> None:
    tree.member_of("0::/system.slice/router.service")
    tree.write("system.slice/router.service/cpu.max", "250000 100000")
    assert tree.quota() == 2.5


def test_v2_quota_of_a_container_whose_group_is_the_root(tree: CgroupTree) -> None:
    tree.member_of("0::/")
    tree.write("cpu.max", "400000 100000")
    assert tree.quota() == 4.0


def test_a_parents_quota_binds_too(tree: CgroupTree) -> None:
    tree.member_of("0::/kubepods/pod1/container")
    tree.write("kubepods/cpu.max", "max 100000")
    tree.write("kubepods/pod1/cpu.max", "150000 50000")
    tree.write("kubepods/pod1/container/cpu.max", "800000 100000")
    assert tree.quota() == 3.0


def test_other_groups_quotas_do_not_bind(tree: CgroupTree) -> None:
    tree.member_of("0::/a/b")
    tree.write("a/b/cpu.max", "max 100000")
    tree.write("a/other/cpu.max", "100000 100000")
    tree.write("a/b/child/cpu.max", "100000 100000")
    assert tree.quota() is None


def test_a_path_of_the_hosts_leads_to_the_containers_root(tree: CgroupTree) -> None:
    tree.member_of("0::/docker/0123abc")
    tree.write("cpu.max", "200000 100000")
    assert tree.quota() == 2.0


def test_a_group_outside_of_the_namespace_does_not_leave_the_root(tree: CgroupTree) -> None:
    tree.member_of("0::/../../outside")
    tree.write("../outside/cpu.max", "100000 100000")
    tree.write("outside/cpu.max", "100000 100000")
    assert tree.quota() is None
    tree.write("cpu.max", "300000 100000")
    assert tree.quota() == 3.0


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_v1_quota(tree: CgroupTree, folder: str) -> None:
    tree.member_of("12:memory:/docker/1", "4:cpu,cpuacct:/docker/1", "0::/docker/1")
    tree.v1(f"{folder}/docker/1", 350_000)
    tree.v1(f"{folder}/docker", -1)
    assert tree.quota() == 3.5


def test_v1_parents_and_hosts_paths(tree: CgroupTree) -> None:
    tree.member_of("1:cpu:/docker/0123abc")
    tree.v1("cpu", 50_000, 25_000)
    assert tree.quota() == 2.0


def test_v1_controllers_that_only_sound_alike_do_not_count(tree: CgroupTree) -> None:
    tree.member_of("2:cpuacct:/a", "3:cpuset:/a")
    tree.v1("cpuacct/a", 100_000)
    tree.v1("cpuset/a", 100_000)
    assert tree.quota() is None


def test_the_tightest_of_both_versions_counts(tree: CgroupTree) -> None:
    tree.member_of("1:cpu:/", "0::/app")
    tree.v1("cpu", 300_000)
    tree.write("unified/app/cpu.max", "150000 100000")
    assert tree.quota() == 1.5


@pytest.mark.parametrize(
    "text", ["max 100000", "max", "", "100000", "100000 0", "0 100000", "-5 100000", "many few", "1 2 3"]
)
def test_what_is_no_quota_is_none(tree: CgroupTree, text: str) -> None:
    tree.member_of("0::/")
    tree.write("cpu.max", text)
    assert tree.quota() is None


def test_half_of_v1s_pair_is_none(tree: CgroupTree) -> None:
    tree.member_of("1:cpu:/")
    tree.write("cpu/cpu.cfs_quota_us", "100000")
    assert tree.quota() is None


def test_without_a_membership_file_the_root_is_looked_at(tree: CgroupTree) -> None:
    tree.write("cpu.max", "200000 100000")
    assert tree.quota() == 2.0


@pytest.mark.parametrize(
    ("quota_us", "visible", "usable"),
    [
        (800_000, 4, 4),  # the affinity is tighter
        (200_000, 64, 2),  # the quota is tighter
        (250_000, 64, 2),  # rounded down
        (199_999, 64, 1),
        (150_000, 2, 1),
        (50_000, 8, 1),  # half a CPU still needs one thread
        (1, 8, 1),
    ],
)
def test_usable_cpus_are_the_smaller_of_quota_and_affinity(
    tree: CgroupTree, quota_us: int, visible: int, usable: int
) -> None:
    tree.member_of("0::/")
    tree.write("cpu.max", f"{quota_us} 100000")
    assert tree.usable(visible) == usable


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    nothing = tmp_path / "absent"
    assert quota_cpus(nothing, nothing) is None
    assert usable_cpus(nothing, nothing) == scheduler_cpus()
    assert usable_cpus(nothing, nothing, visible=16) == 16


def test_this_machine_has_usable_cpus() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
    assert 1 <= inference_threads(None) <= usable_cpus()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has an affinity")
def test_the_affinity_is_kept_to() -> None:
    cpu = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{cpu}}});"
        "from expert_router.engines.threads import usable_cpus; print(usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("configured", "visible", "threads"),
    [(None, 1, 1), (None, 2, 2), (None, 4, 4), (None, 5, 4), (None, 64, 63), (3, 2, 3), (1, 64, 1)],
)
def test_inference_threads(tmp_path: Path, configured: int | None, visible: int, threads: int) -> None:
    nothing = tmp_path / "absent"
    assert inference_threads(configured, nothing, nothing, visible) == threads
