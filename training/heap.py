"""Keep freed memory in the process: on small virtual machines a page fault costs more than using the page."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

_OPTIONS = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28}


def keep_freed_memory() -> None:
    """Configure glibc to serve all threads from one heap that never shrinks; on other systems do nothing."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in _OPTIONS.items():
            libc.mallopt(option, value)
