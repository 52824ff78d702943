"""All device processes of one service: whether enough of them are up, what they serve, and what happens when not.

Keeping a single device alive is `supervisor`; requests are `engine`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from service.devices.batcher import Batcher
from service.devices.canary import Canary
from service.devices.messages import Loaded
from service.devices.process import DeviceLost
from service.devices.retry import Quarantine
from service.devices.slots import Arena
from service.devices.supervisor import RestartsExhausted, Shared, Supervisor
from service.errors import NotReady
from service.jobs import Job
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger("vim.engine")

State = Literal["starting", "ready", "recovering", "draining", "failed"]
WORKER = "service.devices.worker"


def explained(state: State, *, loaded: bool) -> str:
    """Why it is not ready, for clients; what went wrong, with its paths, is for the log."""
    return {
        "failed": "the model cannot be served; the server's log says why",
        "draining": "the service is shutting down",
        "recovering": "a device process is being replaced",
    }.get(state, f"the model is being {'warmed up' if loaded else 'loaded'}")


class Fleet:
    """The supervisors of every configured device, and the state that `/readyz` shows."""

    def __init__(
        self, settings: Settings, metrics: Metrics, arena: Arena, batcher: Batcher, quarantine: Quarantine, worker: str
    ) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self.loaded: Loaded | None = None
        self.has_been_ready = False
        self.failure = ""
        self.arrived = asyncio.Event()  # a job was queued, or a device was lost
        self._settings = settings
        self._metrics = metrics
        self._arena = arena
        self._batcher = batcher
        self._canary: Canary
        self._draining = False
        self._given_up = 0  # devices that could not be brought back
        self._started_at = 0.0
        self._group: asyncio.TaskGroup
        self._shared = Shared(
            settings=settings,
            arena=arena,
            batcher=batcher,
            metrics=metrics,
            quarantine=quarantine,
            arrived=self.arrived,
            worker=worker,
            on_loaded=self._on_loaded,
            on_change=self._on_change,
        )
        self._supervisors = [Supervisor(self._shared, name) for name in settings.devices]

    async def run(self) -> None:
        """Start every device and keep it running, until cancelled or until too few can be brought back."""
        self._started_at = time.monotonic()
        try:
            async with asyncio.TaskGroup() as self._group:
                for supervisor in self._supervisors:
                    self._supervise(supervisor)
        except* (DeviceLost, RestartsExhausted) as lost:
            self._fail(str(lost.exceptions[0]))
        except* Exception:
            log.exception("the engine stopped")
            self._fail("the engine stopped; the log has the details")

    async def _keep(self, supervisor: Supervisor) -> None:
        """With VIM_READY_DEVICES=any the service outlives a device, while another is left."""
        try:
            await supervisor.run()
        except (DeviceLost, RestartsExhausted) as lost:
            self._given_up += 1
            if self._settings.ready_devices == "all" or self._given_up == len(self._supervisors):
                raise
            supervisor.last_reason = str(lost)
            log.error("%s is given up: %s; the service goes on without it", supervisor.name, lost)
            await supervisor.close()

    def _supervise(self, supervisor: Supervisor) -> None:
        self._group.create_task(self._keep(supervisor), name=f"supervise {supervisor.name}")

    async def close(self) -> None:
        """End the device processes."""
        await asyncio.gather(*(one.close() for one in self._supervisors))

    def drain(self) -> None:
        """Readiness is false from here on; the devices go on."""
        self._draining = True
        self._on_change()

    @property
    def state(self) -> State:
        """Where the service is in its life; only `ready` makes `/readyz` answer 200."""
        if self.failure:
            return "failed"
        if self._draining:
            return "draining"
        if self._enough_up():
            return "ready"
        return "recovering" if self.has_been_ready else "starting"

    @property
    def reason(self) -> str:
        """Why it is not ready, for clients."""
        return explained(self.state, loaded=self.loaded is not None)

    @property
    def info(self) -> dict[str, Any]:
        """What the first device process said of itself, and how all have fared; raises NotReady before it did."""
        if self.loaded is None:
            raise NotReady(self.reason, retry_after_s=1)
        first = self._supervisors[0]
        fates = [
            {"name": one.name, "up": one.up, "restarts": one.restarts, "last_reason": one.last_reason or None}
            for one in self._supervisors
        ]
        started = {
            "scan": first.scan or self.loaded.info["scan"],
            "runner": first.runner,
            "batch_seconds": first.batch_seconds,
        }
        return self.loaded.info | started | {"devices": fates}

    @property
    def max_batch(self) -> int:
        """The largest batch that any device is given now."""
        return max(one.limit for one in self._supervisors)

    @property
    def running(self) -> list[Job]:
        """The jobs that are on a device now."""
        return [job for one in self._supervisors for job in one.running]

    def _on_loaded(self, loaded: Loaded) -> Canary:
        """The first device process to load its model settles the size of the slots and what is served."""
        if self.loaded is None:
            self._arena.map(loaded.size)
            self._canary = Canary(self._arena, loaded.info["dtype"])
            self.loaded = loaded
            self._add(loaded.siblings)
        return self._canary

    def _add(self, names: tuple[str, ...]) -> None:
        """A process for every further device, where VIM_DEVICE left open how many."""
        if names:
            log.info("%d more devices: %s", len(names), ", ".join(names))
        for supervisor in [Supervisor(self._shared, name) for name in names]:
            self._supervisors.append(supervisor)
            self._supervise(supervisor)

    def _enough_up(self) -> bool:
        enough = all if self._settings.ready_devices == "all" else any
        return enough(one.up for one in self._supervisors)

    def _on_change(self) -> None:
        if self._enough_up() and not self.has_been_ready:
            self.has_been_ready = True
            self._count_loaded(time.monotonic() - self._started_at)
        self._metrics.ready(self.state == "ready")
        self.on_change()

    def _count_loaded(self, seconds: float) -> None:
        info = self.info
        version, device = info["model"]["fingerprint"], info["device"]["name"]
        self._metrics.model_loaded(version=version, device=device, dtype=info["dtype"], seconds=seconds)
        address = (
            f"{'https' if self._settings.tls_cert else 'http'}://{self._settings.host}:{self._settings.port or 'PORT'}"
        )
        hint = f"curl --data-binary @photo.jpg {address}/v1/classify"
        log.info("ready in %.1f s: %s; try: %s", seconds, info["model"]["name"], hint)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        log.error("%s", reason)
        for job in self._batcher.take_all():
            job.fail(NotReady(self.reason))
        self._on_change()
        self.on_failure()
