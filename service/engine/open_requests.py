"""Requests whose answer has not begun: each is answered with an error when the service ends before its work is done."""

from __future__ import annotations

import asyncio
from typing import Any

from service.errors import ServiceError


class OpenRequests:
    """The tasks of such requests; the middleware adds and removes them.

    A task that is cancelled from here is answered with `verdict`.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.verdict: ServiceError | None = None

    def end(self, verdict: ServiceError) -> None:
        """Interrupt all of them, wherever they are: reading a body, decoding, waiting for the device."""
        self.verdict = verdict
        for task in self.tasks:
            task.cancel()
