"""What the engine needs of whatever runs its jobs: the local `service.devices.pool`, or the parent's over a socket."""

from __future__ import annotations

import asyncio
from typing import Protocol

from service.devices.slots import Slots
from service.jobs import Job
from service.status import BackendState, ProcessLoad


class Backend(Protocol):
    """Runs jobs. Every method returns at once; only `run` and `close` wait."""

    slots: Slots  # its capacity: where decoded pixels go
    state: BackendState  # replaced as a whole when something changes
    failed: asyncio.Event  # set when the model can no longer be served
    elsewhere: ProcessLoad  # of the other HTTP processes that share the devices

    @property
    def seconds_per_image(self) -> float:
        """What an image of this process costs the devices at the measured rate; 0 before anything ran."""

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job, whose future is settled later. `more`: others are about to come."""

    def cancel(self, job: Job) -> None:
        """Remove a job whose requests have left."""

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""

    def report(self, load: ProcessLoad) -> None:
        """Say how busy this process is, for the other HTTP processes."""

    def drain(self) -> None:
        """Readiness is false from now on."""

    async def run(self) -> None:
        """Run jobs until cancelled, or until `failed` is set."""

    async def close(self) -> None:
        """Free what the backend owns, the slots included."""
