"""The interface between the engine and what runs its jobs: the local registry, or the parent's over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from service.devices.slots import Slots
from service.jobs import Job
from service.status import BackendState, IndexEntry


class Backend(Protocol):
    """Runs jobs. Every method returns at once; only `run`, `index`, `load`, `unload` and `close` wait."""

    slots: Slots  # for decoded pixels; their number is the capacity
    failed: asyncio.Event  # set when the default model can no longer be served

    @property
    def state(self) -> BackendState:
        """The models and whether they are ready; replaced as a whole when something changes."""

    @property
    def seconds_per_image(self) -> Mapping[int, float]:
        """By model (key): the measured time of all its devices together for one image; 0 before the first batch."""

    def hold(self, model: int) -> None:
        """Keep a loaded model (key), even if it is replaced or unloaded, until `release` was called as often."""

    def release(self, model: int) -> None:
        """End one `hold`."""

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job; its future is settled later. `more`: others will follow soon."""

    def cancel(self, job: Job) -> None:
        """Remove a job that no request waits for."""

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""

    async def index(self) -> tuple[IndexEntry, ...]:
        """All known versions of all models."""

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, or another version of it, and use it for all later requests.

        Raises UnknownModel, and LoadFailed if it cannot be served; then nothing has changed.
        """

    async def unload(self, name: str) -> None:
        """Stop serving a model. Its running requests are answered first. Raises UnknownModel if it is not loaded."""

    def drain(self) -> None:
        """Report "not ready" from now on."""

    async def run(self) -> None:
        """Run jobs until cancelled, or until `failed` is set."""

    async def close(self) -> None:
        """Free what the backend owns, the slots included."""
