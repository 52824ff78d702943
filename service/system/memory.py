"""The memory that this process may use: the lowest limit of its cgroups, or what the machine has."""

from __future__ import annotations

import mmap
from pathlib import Path

from service.system.cpus import CGROUPS, OWN, cgroup_directories

_MEMINFO = Path("/proc/meminfo")


def available_bytes(cgroups: Path = CGROUPS, own: Path = OWN, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes; None if no limit or size can be read. Never raises."""
    files = [directory / "memory.max" for directory in cgroup_directories(cgroups, own)]
    limits = [_number(file) for file in (*files, cgroups / "memory" / "memory.limit_in_bytes")]
    return min((one for one in (*limits, _total(meminfo)) if one), default=None)


def can_allocate(size: int) -> bool:
    """Return whether the kernel gives this process `size` more bytes now. They are not used, so this is quick.

    It does not if a limit is set (`ulimit -v`), or if the kernel does not overcommit memory.
    """
    try:
        mmap.mmap(-1, max(1, size)).close()
    except (OSError, OverflowError):
        return False
    return True


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _total(meminfo: Path) -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        return 1024 * int(fields["MemTotal"].split()[0])
    except (OSError, LookupError, ValueError):
        return None
