"""The file descriptors of this process: how many connections they allow."""

from __future__ import annotations

import os
import resource

RESERVE = 96  # listeners, decoders, and the sockets and pipes that start a device process
LEAST = 8


def raise_limit() -> None:
    """Raise the soft limit to the hard limit, as `ulimit -n` could."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def available() -> int:
    """The number of connections that may be open at once: the limit minus open descriptors and a reserve."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 20
    return max(LEAST, limit - len(os.listdir("/proc/self/fd")) - RESERVE)
