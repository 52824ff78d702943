"""The memory limit is the lowest of the cgroups and the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.system.memory import available_bytes


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A machine with 8 GiB; its cgroups, this process's cgroup, and /proc/meminfo."""
    cgroups, own, meminfo = tmp_path / "cgroup", tmp_path / "self", tmp_path / "meminfo"
    (cgroups / "pod").mkdir(parents=True)
    own.write_text("0::/pod\n")
    meminfo.write_text("MemTotal:        8388608 kB\nMemFree:         100 kB\n")
    return cgroups, own, meminfo


def test_without_a_limit_it_is_the_machines(machine: tuple[Path, Path, Path]) -> None:
    """If the cgroups have no limit (`max`), the result is the machine's memory."""
    (machine[0] / "pod" / "memory.max").write_text("max\n")

    assert 8 << 30 == available_bytes(*machine)


def test_the_lowest_limit_counts(machine: tuple[Path, Path, Path]) -> None:
    """The lowest limit counts, here that of the process's own cgroup."""
    (machine[0] / "pod" / "memory.max").write_text(f"{1 << 30}\n")

    assert 1 << 30 == available_bytes(*machine)


def test_nothing_is_known_where_no_file_can_be_read(tmp_path: Path) -> None:
    """If no file can be read the result is None."""
    assert available_bytes(tmp_path, tmp_path / "none", tmp_path / "none") is None
