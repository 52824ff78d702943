"""The memory limit is the lowest of the cgroups and the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.system.memory import available_bytes, free_bytes, private_bytes


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


def test_what_is_free_is_the_least_that_any_limit_leaves(machine: tuple[Path, Path, Path]) -> None:
    """The room in a cgroup counts file caches as free, and the machine's own free memory is a limit too."""
    cgroups, _, meminfo = machine
    (cgroups / "pod" / "memory.max").write_text(f"{4 << 30}\n")
    (cgroups / "pod" / "memory.current").write_text(f"{3 << 30}\n")
    (cgroups / "pod" / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 30}\n")
    meminfo.write_text("MemTotal: 8388608 kB\nMemAvailable: 7340032 kB\n")
    assert 2 << 30 == free_bytes(*machine)

    meminfo.write_text("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n")
    assert 1 << 30 == free_bytes(*machine)


def test_without_statistics_file_caches_count_as_used(machine: tuple[Path, Path, Path]) -> None:
    """A cgroup without memory.stat leaves its limit minus its usage, and never less than nothing."""
    (machine[0] / "pod" / "memory.max").write_text("100\n")
    (machine[0] / "pod" / "memory.current").write_text("120\n")

    assert 0 == free_bytes(*machine)


def test_nothing_is_known_of_free_memory_where_no_file_can_be_read(tmp_path: Path) -> None:
    """If no file can be read the result is None."""
    assert free_bytes(tmp_path, tmp_path / "none", tmp_path / "none") is None


PROGRAM = """
from service.system.memory import private_bytes
before = private_bytes()
written = bytearray(64 << 20)
written[::4096] = b"x" * len(written[::4096])
print(private_bytes() - before)
"""


def test_private_memory_grows_with_what_the_process_writes(tmp_path: Path) -> None:
    """Memory that the process writes counts as its own; without the file the result is 0."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert int(done.stdout) >= 64 << 20
    assert 0 == private_bytes(tmp_path / "none")


FREED = """
import ctypes
from service.system.memory import private_bytes, trim
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = private_bytes()
pieces = [libc.malloc(16_000) for _ in range(4000)]
for piece in pieces:
    ctypes.memset(piece, 1, 16_000)
kept = libc.malloc(16_000)
for piece in pieces:
    libc.free(ctypes.c_void_p(piece))
trim()
print(private_bytes() - before)
"""


def test_freed_memory_is_given_back() -> None:
    """Of many freed pieces below one that is used, the system gets the memory back."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 16 << 20
