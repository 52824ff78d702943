"""The memory that this process may use: the lowest limit of its cgroups, or what the machine has."""

from __future__ import annotations

from pathlib import Path

from service.system.cpus import CGROUPS, OWN, cgroup_directories

_MEMINFO = Path("/proc/meminfo")


def available_bytes(cgroups: Path = CGROUPS, own: Path = OWN, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes; None where nothing says how many. Never raises."""
    files = [directory / "memory.max" for directory in cgroup_directories(cgroups, own)]
    limits = [_number(file) for file in (*files, cgroups / "memory" / "memory.limit_in_bytes")]
    return min((one for one in (*limits, _total(meminfo)) if one), default=None)


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
