"""Counting CPUs with fake cgroup trees of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.system.cpus import available_cpus, heap_environment, thread_environment


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with more CPUs than any quota below."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def count(root: Path, membership: str, files: dict[str, str]) -> int:
    """What `available_cpus` finds where `/proc/self/cgroup` says `membership` and the cgroup tree holds `files`."""
    for name, text in files.items():
        file = root / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (root / "own").write_text(membership + "\n")
    return available_cpus(root / "fs", root / "own")


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    """Without a cgroup file system only the affinity limits the CPUs."""
    assert available_cpus(tmp_path / "absent", tmp_path / "absent") == 16


def test_the_real_machine_gives_a_number() -> None:
    """With the default paths the number of CPUs of this machine is positive."""
    assert available_cpus() >= 1


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 16),
        ("9900000 100000", 16),
        ("0 100000", 16),
        ("", 16),
        ("200000", 16),
        ("many cores", 16),
    ],
)
def test_version_2_quota_is_rounded_up(tmp_path: Path, quota: str, cpus: int) -> None:
    """A quota of cgroup version 2 is rounded up, and an invalid one sets no limit."""
    assert count(tmp_path, "0::/", {"cpu.max": quota}) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("350000", 4), ("-1", 16), ("1000", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_quota_is_rounded_up(tmp_path: Path, mount: str, quota: str, cpus: int) -> None:
    """A quota of cgroup version 1 is rounded up, under both names of its mount."""
    files = {f"{mount}/cpu.cfs_quota_us": quota, f"{mount}/cpu.cfs_period_us": "100000"}

    assert count(tmp_path, "4:cpu,cpuacct:/", files) == cpus


def test_an_ancestors_quota_binds(tmp_path: Path) -> None:
    """The quota of an ancestor applies, as a pod's quota does to its containers."""
    files = {"pods/cpu.max": "300000 100000", "pods/a/b/cpu.max": "800000 100000", "pods/a/cpu.max": "max 100000"}

    assert count(tmp_path, "0::/pods/a/b", files) == 3


def test_version_1_in_a_nested_cgroup(tmp_path: Path) -> None:
    """In version 1 the quota of the process's own nested group applies."""
    files = {"cpu/docker/c1/cpu.cfs_quota_us": "250000", "cpu/docker/c1/cpu.cfs_period_us": "100000"}

    assert count(tmp_path, "1:cpu:/docker/c1\n2:memory:/docker/c1", files) == 3


def test_a_path_from_the_hosts_view_falls_back_to_the_mount(tmp_path: Path) -> None:
    """A container without a cgroup namespace sees the host's path, but its mount is its own group."""
    files = {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}

    assert count(tmp_path, "1:cpu:/docker/unknown", files) == 2


def test_a_path_outside_the_namespace_never_leaves_the_mount(tmp_path: Path) -> None:
    """A path that leaves the cgroup namespace is not followed out of the mount."""
    (tmp_path / "cpu.max").write_text("100000 100000\n")

    assert count(tmp_path, "0::/../..", {"cpu.max": "200000 100000"}) == 2


def test_a_neighbours_quota_does_not_bind(tmp_path: Path) -> None:
    """The quota of a neighbouring group does not apply."""
    assert count(tmp_path, "0::/mine", {"theirs/cpu.max": "100000 100000", "mine/cpu.max": "max 100000"}) == 16


def test_a_malformed_membership_is_ignored(tmp_path: Path) -> None:
    """A malformed membership line sets no limit."""
    assert count(tmp_path, "nonsense\n\n::::", {"cpu.max": "400000 100000"}) == 4


def test_affinity_below_the_quota_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An affinity below the quota is the limit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)

    assert count(tmp_path, "0::/", {"cpu.max": "400000 100000"}) == 1


def test_without_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without affinity the CPU count of the machine applies, and 1 where that is unknown."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)

    assert available_cpus(tmp_path, tmp_path / "absent") == 1


def test_the_thread_environment_names_every_pool() -> None:
    """The environment sets the same number of threads for every library that starts threads."""
    assert thread_environment(3) == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "NUMBA_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
    }


def test_a_process_with_the_heap_environment_starts() -> None:
    """A process starts with the heap variables, which glibc reads before main."""
    run = subprocess.run([sys.executable, "-c", "bytearray(1 << 26)"], env=os.environ | heap_environment(), check=False)

    assert 0 == run.returncode
