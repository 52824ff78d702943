"""How long a thread may use a CPU before others have their turn. Short for the event loop: then it also comes sooner.

Since Linux 6.12 a thread may ask for a slice, and one that wakes with a short slice takes the CPU from one with a
longer. Otherwise the loop, waking while the model and the decode threads use all CPUs, waits until a slice of
milliseconds is over. Nothing is gained or lost in how much of a CPU each has. Older kernels ignore the wish.
Threads and processes inherit it; those that compute take the usual slice again.
"""

from __future__ import annotations

import ctypes
import platform

SHORT_NS = 100_000  # the least that Linux takes

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr: glibc has them since 2.41
_FAIR = {0, 3}  # the policies that have slices: SCHED_OTHER, SCHED_BATCH


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2), as it was at first."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


def shorten() -> bool:
    """Ask for a short slice for the calling thread; False where the system has none to give."""
    return _ask(SHORT_NS)


def restore() -> bool:
    """Let the calling thread have the system's own slice again."""
    return _ask(0)


def slice_ns() -> int | None:
    """The calling thread's slice in nanoseconds; None where the system does not tell."""
    found = _attributes()
    return int(found.runtime) or None if found is not None else None


def _ask(runtime_ns: int) -> bool:
    wanted = _attributes()
    if wanted is None:
        return False
    wanted.runtime = runtime_ns
    set_attributes, _ = _CALLS[platform.machine()]
    return bool(ctypes.CDLL(None).syscall(set_attributes, 0, ctypes.byref(wanted), 0) == 0)


def _attributes() -> _Attributes | None:
    """None as well for a thread whose policy knows no slices."""
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return None
    found = _Attributes()
    _, get_attributes = _CALLS[platform.machine()]
    status = ctypes.CDLL(None).syscall(get_attributes, 0, ctypes.byref(found), ctypes.sizeof(found), 0)
    return found if status == 0 and found.policy in _FAIR else None
