"""The memory that this process may use: the lowest limit of its cgroups, or what the machine has."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

from service.system.cpus import CGROUPS, OWN, cgroup_directories

_MEMINFO = Path("/proc/meminfo")


def available_bytes(cgroups: Path = CGROUPS, own: Path = OWN, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes; None if no limit or size can be read. Never raises."""
    files = [directory / "memory.max" for directory in cgroup_directories(cgroups, own)]
    limits = [_number(file) for file in (*files, cgroups / "memory" / "memory.limit_in_bytes")]
    return min((one for one in (*limits, _field(meminfo, "MemTotal")) if one), default=None)


def free_bytes(cgroups: Path = CGROUPS, own: Path = OWN, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes that are free now, with file caches; None if that cannot be read. Never raises."""
    rooms = [_room(directory) for directory in cgroup_directories(cgroups, own)]
    return min((one for one in (*rooms, _field(meminfo, "MemAvailable")) if one is not None), default=None)


def can_allocate(size: int) -> bool:
    """Return whether the kernel gives this process `size` more bytes now. They are not used, so this is quick.

    It does not if a limit is set (`ulimit -v`), or if the kernel does not overcommit memory.
    """
    try:
        mmap.mmap(-1, max(1, size)).close()
    except (OSError, OverflowError):
        return False
    return True


def trim() -> None:
    """Return freed memory to the system; glibc would keep it. With other C libraries nothing happens. Blocks."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _room(cgroup: Path) -> int | None:
    """What a cgroup's limit leaves; file caches are given back when memory is short."""
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or used is None:
        return None
    try:
        fields = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(fields["inactive_file"]))
    except (OSError, LookupError, ValueError):
        return max(0, limit - used)


def _field(meminfo: Path, name: str) -> int | None:
    """A field of /proc/meminfo in bytes."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        return 1024 * int(fields[name].split()[0])
    except (OSError, LookupError, ValueError):
        return None


def private_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory of this process that it shares with no other, in bytes; 0 if unknown."""
    try:
        _, resident, shared, *_ = map(int, statm.read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
