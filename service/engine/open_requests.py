"""Open requests: their answer has not begun. At the end of the service each of them is answered with an error."""

from __future__ import annotations

import asyncio
from typing import Any

from service.errors import ServiceError


class OpenRequests:
    """The tasks of open requests; the middleware adds and removes them.

    A request whose task is cancelled by `end` is answered with `verdict`.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.verdict: ServiceError | None = None

    def end(self, verdict: ServiceError) -> None:
        """Cancel all of them in any state: reading a body, decoding, waiting for the device."""
        self.verdict = verdict
        for task in self.tasks:
            task.cancel()
