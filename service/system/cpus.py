"""The number of CPUs that this process may use: the lower of its affinity and its cgroup quotas.

`os.cpu_count` counts the machine's CPUs; a container with half a core on a 64-core node must not start 64 threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def available_cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Whole CPUs, rounded up, at least 1. Never raises: a file that cannot be read sets no limit."""
    quotas = (quota for directory in cgroup_directories(cgroups, own) for quota in (_v2(directory), _v1(directory)))
    return max(1, min([_affinity(), *(math.ceil(quota) for quota in quotas if quota is not None)]))


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables for the device process, set before numpy, torch or numba is imported there.

    OpenMP threads sleep between passes, because spinning takes CPU time that decoding needs. Within a pass the next
    work comes after microseconds, and waking a thread takes longer; so threads spin for up to half a millisecond first.
    """
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
    return {**dict.fromkeys(_POOLS, str(threads)), **waiting}


def heap_environment() -> dict[str, str]:
    """Environment variables that make the device process keep freed memory, since each batch needs the same blocks.

    glibc would return large blocks to the kernel and fault them in again. On a virtual machine with two cores, keeping
    them made the demo model's batches of 8 and 32 run 1.1 to 1.4 times faster. Other C libraries ignore the variables.
    """
    return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_directories(cgroups: Path, own: Path) -> Iterator[Path]:
    """The process's own cgroups and all their ancestors; the limits of all of them apply."""
    for mount, path in _memberships(cgroups, own):
        inside = PurePosixPath(path.strip("/"))
        # A process outside its cgroup namespace sees "/../.."; then only the mount is known to be an ancestor.
        below = [] if ".." in inside.parts else [inside, *inside.parents]
        yield from {mount, *(mount / part for part in below)}


def _memberships(cgroups: Path, own: Path) -> Iterator[tuple[Path, str]]:
    yield cgroups, "/"
    yield cgroups / "cpu", "/"
    for line in _read(own).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            yield cgroups, path
        elif "cpu" in controllers.split(","):
            yield cgroups / controllers, path
            yield cgroups / "cpu", path


def _v2(directory: Path) -> float | None:
    quota, _, period = _read(directory / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _v1(directory: Path) -> float | None:
    return _ratio(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """CPUs of a quota; None for `max` (v2), -1 (v1) and anything that is not a number."""
    try:
        allowed, out_of = int(quota), int(period)
    except ValueError:
        return None
    return allowed / out_of if allowed > 0 and out_of > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
