"""Wait for blocking work and for processes, even if no thread can be started (`ulimit -u`, a limit of a container)."""

from __future__ import annotations

import asyncio
import math
import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

POLL_S = 0.01

T = TypeVar("T")


async def run(work: Callable[..., T], *arguments: Any) -> T:
    """Run `work(*arguments)` in a thread, or here if no thread can be started. The work must not raise RuntimeError."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except RuntimeError:
        return work(*arguments)


async def exit_status(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """The exit status of a process; None if it does not end in `timeout_s` seconds."""
    for _ in range(math.ceil(timeout_s / POLL_S)):
        if (status := process.poll()) is not None:
            return status
        await asyncio.sleep(POLL_S)
    return process.poll()


async def ended(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """The exit status of a process, which is killed if it does not end in `timeout_s` seconds."""
    status = await exit_status(process, timeout_s)
    while status is None:
        process.kill()
        status = await exit_status(process, timeout_s)
    return status
