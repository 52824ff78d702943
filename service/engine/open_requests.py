"""Requests whose answer has not begun, so that each can be given one when the service ends before its work is done."""

from __future__ import annotations

import asyncio
from typing import Any

from service.errors import ServiceError


class Unanswered:
    """The tasks of such requests. A task that is cancelled from here answers with `verdict`."""

    def __init__(self) -> None:
        self.verdict: ServiceError | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self) -> asyncio.Task[Any]:
        """The current task serves a request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """Its answer begins, or it is over."""
        self._tasks.discard(task)

    def end(self, verdict: ServiceError) -> None:
        """Interrupt them all, wherever they are: reading a body, decoding, waiting for the device."""
        self.verdict = verdict
        for task in self._tasks:
            task.cancel()
