"""The interface between the engine and what runs its jobs: the local pool, or the parent's pool over a socket."""

from __future__ import annotations

import asyncio
from typing import Protocol

from service.devices.slots import Slots
from service.jobs import Job
from service.status import BackendState


class Backend(Protocol):
    """Runs jobs. Every method returns at once; only `run` and `close` wait."""

    slots: Slots  # for decoded pixels; their number is the capacity
    state: BackendState  # replaced as a whole when something changes
    failed: asyncio.Event  # set when the model can no longer be served

    @property
    def seconds_per_image(self) -> float:
        """The measured time of all devices together for one image; 0 before the first batch."""

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job; its future is settled later. `more`: others will follow soon."""

    def cancel(self, job: Job) -> None:
        """Remove a job that no request waits for."""

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""

    def drain(self) -> None:
        """Report "not ready" from now on."""

    async def run(self) -> None:
        """Run jobs until cancelled, or until `failed` is set."""

    async def close(self) -> None:
        """Free what the backend owns, the slots included."""
