"""The scheduler slice of a thread: how long it may use a CPU before other threads run. The event loop has a short one.

Since Linux 6.12 a thread may request a slice, and a waking thread with a short slice preempts one with a longer slice.
Otherwise the event loop, waking while the model and the decode threads use all CPUs, waits milliseconds until a slice
ends. The share of CPU time stays the same. Older kernels ignore the request. Threads and processes inherit the slice;
those that compute restore the usual one.
"""

from __future__ import annotations

import ctypes
import platform

SHORT_NS = 100_000  # the shortest slice that Linux accepts

_CALLS = {
    "x86_64": (314, 315),
    "aarch64": (274, 275),
}  # sched_setattr, sched_getattr; glibc has functions for them since 2.41
_FAIR = {0, 3}  # policies with slices: SCHED_OTHER, SCHED_BATCH


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2) in its first version."""

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
    """Request a short slice for the calling thread; False where the system does not support it."""
    return _request(SHORT_NS)


def restore() -> bool:
    """Restore the system's usual slice for the calling thread."""
    return _request(0)


def slice_ns() -> int | None:
    """The slice of the calling thread in nanoseconds; None if the system does not return it."""
    found = _attributes()
    return int(found.runtime) or None if found is not None else None


def _request(runtime_ns: int) -> bool:
    wanted = _attributes()
    if wanted is None:
        return False
    wanted.runtime = runtime_ns
    set_attributes, _ = _CALLS[platform.machine()]
    return bool(ctypes.CDLL(None).syscall(set_attributes, 0, ctypes.byref(wanted), 0) == 0)


def _attributes() -> _Attributes | None:
    """The attributes of the calling thread; None also where its policy has no slices."""
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return None
    found = _Attributes()
    _, get_attributes = _CALLS[platform.machine()]
    status = ctypes.CDLL(None).syscall(get_attributes, 0, ctypes.byref(found), ctypes.sizeof(found), 0)
    return found if status == 0 and found.policy in _FAIR else None
