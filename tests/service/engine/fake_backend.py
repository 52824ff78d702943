"""A backend that keeps its jobs, for tests of the engine's parts."""

from __future__ import annotations

import asyncio
from collections import Counter

from service.devices.slots import Slots
from service.devices.usage import Usage
from service.jobs import Job
from service.status import BackendState, IndexEntry, ModelId, ModelState


class FakeBackend:
    """A `service.engine.backend.Backend` without devices; it only keeps its jobs."""

    def __init__(self, slots: int = 8, seconds_per_image: float = 0.0, usage: Usage | None = None) -> None:
        self.slots = Slots(slots, usage)
        self.model = ModelState(ModelId("m", "1", 1))
        self.failed = asyncio.Event()
        self.seconds_per_image = {1: seconds_per_image}
        self.held: Counter[int] = Counter()
        self.jobs: list[Job] = []

    @property
    def state(self) -> BackendState:
        """The state with the one model."""
        return BackendState("m", (self.model,))

    def hold(self, model: int) -> None:
        """Count it."""
        self.held[model] += 1

    def release(self, model: int) -> None:
        """Count it."""
        self.held[model] -= 1

    async def index(self) -> tuple[IndexEntry, ...]:
        """Nothing is known."""
        return ()

    async def load(self, name: str, version: str | None = None) -> None:
        """Load nothing."""

    async def unload(self, name: str) -> None:
        """Unload nothing."""

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Keep the job."""
        self.jobs.append(job)

    def cancel(self, job: Job) -> None:
        """Forget the job."""
        self.jobs.remove(job)

    def promote(self, job: Job) -> None:
        """Change its class."""
        job.request_class = "interactive"

    def abandon(self, error: Exception) -> None:
        """Fail all jobs."""
        for job in self.jobs:
            job.fail(error)

    def drain(self) -> None:
        """Do nothing."""

    async def run(self) -> None:
        """Run nothing."""

    async def close(self) -> None:
        """Free the slots."""
        self.slots.close()
