"""The pool: all device processes of one loaded model, their queue, and whether enough devices are up.

`service.devices.supervisor` keeps a single device process running; `service.engine` handles requests.
"""

from __future__ import annotations

import asyncio
import logging
import time

from service.devices.batcher import Batcher
from service.devices.canary import Canary
from service.devices.context import Context
from service.devices.process import DeviceLost
from service.devices.slots import Slots
from service.devices.supervisor import RestartsExhausted, Supervisor
from service.devices.turns import Turns
from service.errors import InferenceFailed, NotReady
from service.jobs import Job
from service.settings import Settings
from service.status import DeviceStatus, ModelId, ModelState, Phase
from service.telemetry.model_metrics import ModelMetrics

log = logging.getLogger("vim.pool")

WORKER = "service.devices.worker"


class Pool:
    """The device processes of one loaded model, on all devices of the service."""

    def __init__(
        self,
        settings: Settings,
        metrics: ModelMetrics,
        slots: Slots,
        model: ModelId,
        worker: str = WORKER,
        turns: Turns | None = None,
        changed: asyncio.Event | None = None,
    ) -> None:
        """`worker` is the module that runs as the device process. `turns` are shared by all models of the service.

        `changed` is set whenever `state` was replaced.
        """
        self.slots = slots
        self.state = ModelState(model)
        self.settled = asyncio.Event()  # it has been ready, or has failed
        self._changed = changed or asyncio.Event()
        self._settings = settings
        self._metrics = metrics
        self._queue = Batcher(settings.max_wait_ms / 1000)
        self._canary = Canary(self.slots)
        self._context = Context(
            settings, metrics, self.slots, self._queue, worker, self._canary, turns=turns or Turns()
        )
        self._supervisors = [Supervisor(self._context, name) for name in settings.devices]
        self._draining = False
        self._has_been_ready = False
        self._failure = ""
        self._given_up = 0  # devices that could not be brought back
        self._started_at = 0.0
        self._knows_siblings = False
        self._refresh()

    # --- jobs -------------------------------------------------------------------------------------------------

    @property
    def seconds_per_image(self) -> float:
        """The measured time of the whole pool for one image; 0 before the first batch."""
        return self._queue.seconds_per_image / len(self._supervisors)

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job; its future is settled later. `more`: others will follow soon."""
        context = self._context
        if self._failure:
            job.fail(NotReady(self.state.reason))
        elif context.quarantine.until and (error := self._quarantined(job)):
            job.fail(error)
        elif self._queue.put(job, more=more, limit=self.state.max_batch):
            context.wake.set()

    def cancel(self, job: Job) -> None:
        """Remove a job that no request waits for. If a device already has it, its result is dropped."""
        self._queue.discard(job)

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""
        self._queue.promote(job)

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""
        running = [job for supervisor in self._supervisors for job in supervisor.running]
        for job in [*self._queue.take_all(), *running]:
            job.fail(error)

    def _quarantined(self, job: Job) -> InferenceFailed | None:
        return self._context.quarantine.check(self._canary.pixels[job.slot], time.monotonic())

    # --- life cycle -------------------------------------------------------------------------------------------

    async def run(self, *, background: bool = False) -> None:
        """Start every device and keep it running, until cancelled or until too few can be brought back.

        With `background` the model is loaded at low priority, because other models serve.
        """
        self._context.background = background
        self._started_at = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for supervisor in self._supervisors:
                    group.create_task(self._keep(supervisor), name=f"supervise {supervisor.name}")
                group.create_task(self._watch(group), name="watch devices")
        except* (DeviceLost, RestartsExhausted) as lost:
            self._fail(str(lost.exceptions[0]))
        except* Exception:
            log.exception("the devices of model %s stopped", self.state.id.name)
            self._fail("an internal error; the log has the details")

    def drain(self) -> None:
        """Report "not ready" from now on; the devices continue."""
        self._draining = True
        self._refresh()

    async def close(self) -> None:
        """End the device processes, and give back the memory of the model's pixels."""
        await asyncio.gather(*(one.close() for one in self._supervisors))
        if self.state.area is not None:
            self.slots.remove(self.state.area)

    async def _keep(self, supervisor: Supervisor) -> None:
        """Run a supervisor. With VIM_READY_DEVICES=any the service continues without a device while others are left."""
        try:
            await supervisor.run()
        except (DeviceLost, RestartsExhausted) as lost:
            self._given_up += 1
            if self._settings.ready_devices == "all" or self._given_up == len(self._supervisors):
                raise
            supervisor.last_reason = str(lost)
            log.error("%s is given up: %s; the service goes on without it", supervisor.name, lost)
            self._refresh()
            await supervisor.close()

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Replace `state` whenever a device has changed; start the other devices that the first one reports."""
        while True:
            await self._context.changed.wait()
            self._context.changed.clear()
            self._refresh()
            if self.state.model is not None and not self._knows_siblings:
                self._knows_siblings = True
                self._add_siblings(group)

    def _add_siblings(self, group: asyncio.TaskGroup) -> None:
        """Start a process for every other device, if VIM_DEVICE does not select devices by number."""
        loaded = self._supervisors[0].loaded
        if loaded is None or not loaded.siblings:
            return
        log.info("%d more devices: %s", len(loaded.siblings), ", ".join(loaded.siblings))
        for name in loaded.siblings:
            supervisor = Supervisor(self._context, name)
            self._supervisors.append(supervisor)
            group.create_task(self._keep(supervisor), name=f"supervise {name}")
        self._refresh()

    # --- state ------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Replace `state`."""
        enough = all if self._settings.ready_devices == "all" else any
        up = enough(one.up for one in self._supervisors)
        newly_ready = up and not self._has_been_ready
        self._has_been_ready |= up
        devices = tuple(one.status for one in self._supervisors)
        state = ModelState(
            id=self.state.id,
            phase=self._phase(up=up),
            failure=self._failure,
            has_been_ready=self._has_been_ready,
            model=self._canary.model,
            devices=devices,
            max_batch=max(one.limit for one in devices),
            least_image_s=_least_image_s(devices),
            area=self._canary.area,
        )
        if state != self.state:
            self.state = state
            self._changed.set()
        if newly_ready:
            self.settled.set()
            self._report_ready()

    def _phase(self, *, up: bool) -> Phase:
        if self._failure:
            return "failed"
        if self._draining:
            return "draining"
        if up:
            return "ready"
        return "recovering" if self._has_been_ready else "starting"

    def _report_ready(self) -> None:
        model, seconds = self.state.model, time.monotonic() - self._started_at
        assert model is not None
        self._metrics.model_loaded(
            family=model.family,
            version=model.fingerprint,
            device=model.device.name,
            dtype=model.dtype,
            seconds=seconds,
        )

    def _fail(self, reason: str) -> None:
        self._failure = reason
        if not self._has_been_ready:
            self._metrics.load_failed()
        log.error("%s", reason)
        self._refresh()
        for job in self._queue.take_all():
            job.fail(NotReady(self.state.reason))
        self.settled.set()


def _least_image_s(devices: tuple[DeviceStatus, ...]) -> float:
    rates = [max(size / seconds for size, seconds in one.batch_seconds.items()) for one in devices if one.batch_seconds]
    return 1 / sum(rates) if rates else 0.0
