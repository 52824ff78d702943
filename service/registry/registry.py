"""The registry: the loaded models of a service, and how a model is replaced while it serves.

A reload starts the device processes of the new version beside those of the old one. When they have passed their
self-tests and the warm-up, one assignment makes all later requests use them. The old processes end when no request uses
them. If the new version cannot be served, nothing changes. Every version of every model has device processes
of its own: the crash of one does not touch the others, and an ended process gives back all its memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.devices.pool import WORKER, Pool
from service.devices.slots import Slots
from service.devices.turns import Turns
from service.devices.usage import MODELS
from service.errors import Draining, LoadFailed, NotReady, SettingsError, UnknownModel
from service.jobs import Job
from service.registry.budget import shortage
from service.registry.poll import look, poll
from service.registry.sources import ModelSource, Sources, settings_for
from service.settings import Settings, variable
from service.status import BackendState, IndexEntry, IndexState, ModelId
from service.system import blocking, memory
from service.telemetry.metrics import Metrics

log = logging.getLogger("vim.registry")


class User(Protocol):
    """An HTTP process that uses the models."""

    seen: int  # the serial of the newest state that it has confirmed

    def uses(self, model: int) -> bool:
        """Return whether it may still submit jobs for this model (key)."""


@dataclass(slots=True, eq=False)
class _Loaded:
    """One load of a model."""

    source: ModelSource
    pool: Pool
    task: asyncio.Task[None] | None = None
    ends: bool = False  # its devices are being ended


class Registry:
    """All models of a service (a `service.engine.backend.Backend`)."""

    def __init__(self, settings: Settings, metrics: Metrics, worker: str = WORKER, slots: Slots | None = None) -> None:
        """`worker` is the module that runs as the device process. `slots`: None makes VIM_QUEUE_IMAGES new slots."""
        self.slots = slots or Slots(settings.queue_images)
        self.failed = asyncio.Event()  # the default model can no longer be served
        self.changed = asyncio.Event()  # `state` was replaced
        self.users: set[User] = set()  # HTTP processes; with only one it is this process, which calls `hold`
        self._settings = settings
        self._metrics = metrics
        self._worker = worker
        self._sources = Sources.of(settings)
        self._turns = Turns()
        self._keys = itertools.count(1)
        self._numbers: dict[str, int] = {}
        self._loads: dict[int, _Loaded] = {}  # by key: current ones, one that is loaded, ones that end
        self._current: dict[str, int] = {}  # name -> key
        self._notes: dict[tuple[str, str], IndexEntry] = {}  # what `_current` does not say, by name and version
        self._held: Counter[int] = Counter()
        self._pool_changed, self._users_changed = asyncio.Event(), asyncio.Event()
        self._control = asyncio.Lock()  # one load or unload at a time
        self._draining = False
        self._group: asyncio.TaskGroup
        known = self._sources.all()
        if not known:
            raise SettingsError(f"{variable('model_repository')}={settings.model_repository} has no models")
        self._default = known[0].name
        for source in {one.name: one for one in known}.values():  # the newest version of each
            self._current[source.name] = self._add(source)
        self.state = self._state()

    # --- jobs -------------------------------------------------------------------------------------------------

    @property
    def seconds_per_image(self) -> Mapping[int, float]:
        """By model (key): the measured time of all its devices together for one image; 0 before the first batch."""
        return {key: self._loads[key].pool.seconds_per_image for key in self._current.values()}

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job; its future is settled later. `more`: others will follow soon."""
        loaded = self._loads.get(job.model)
        if loaded is not None and not loaded.ends:
            loaded.pool.submit(job, more=more)
        else:
            job.fail(NotReady("the model was unloaded", retry_after_s=1))

    def cancel(self, job: Job) -> None:
        """Remove a job that no request waits for."""
        if loaded := self._loads.get(job.model):
            loaded.pool.cancel(job)

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""
        if loaded := self._loads.get(job.model):
            loaded.pool.promote(job)

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""
        for loaded in self._loads.values():
            loaded.pool.abandon(error)

    def hold(self, model: int) -> None:
        """Keep a loaded model (key), even if it is replaced or unloaded, until `release` was called as often."""
        self._held[model] += 1

    def release(self, model: int) -> None:
        """End one `hold`."""
        self._held[model] -= 1
        if not self._held[model]:
            del self._held[model]
            self.users_changed()

    def users_changed(self) -> None:
        """Check again which models are in use: a user has confirmed a state, has released a model, or has ended."""
        self._users_changed.set()

    # --- life cycle -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load the models, the default one first, and keep their devices running until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._watch(), name="watch models")
            first = await blocking.run(look, self._sources) if self._settings.model_poll_s else {}
            async with self._control:
                for key in tuple(self._current.values()):
                    await self._start(self._loads[key])
            if every_s := self._settings.model_poll_s:
                await poll(self._sources, self, first, every_s)

    def drain(self) -> None:
        """Report "not ready" from now on; the devices continue."""
        self._draining = True
        for loaded in self._loads.values():
            loaded.pool.drain()
        self._refresh()

    async def close(self) -> None:
        """End the device processes and free the slots. `run` has ended."""
        self._draining = True
        async with self._control:  # a load that was running ends its process itself, with the slots still open
            await asyncio.gather(*(loaded.pool.close() for loaded in self._loads.values()))
            self.slots.close()

    # --- control ----------------------------------------------------------------------------------------------

    async def index(self) -> tuple[IndexEntry, ...]:
        """All known versions of all models, by name and version."""
        known = await blocking.run(self._sources.all)
        found = {(one.name, one.version): _entry(one, "UNAVAILABLE", "not loaded") for one in known}
        found |= {key: one for key, one in self._notes.items() if key in found or one.state != "UNAVAILABLE"}
        for key in self._current.values():
            entry = _serving(self._loads[key])
            noted = self._notes.get((entry.name, entry.version))
            if entry.state == "READY" and noted is not None and noted.state == "UNAVAILABLE":
                entry = dataclasses.replace(entry, reason=f"the last load of this version failed: {noted.reason}")
            found[entry.name, entry.version] = entry
        return tuple([found[key] for key in sorted(found)])

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, or another version of it, and use it for all later requests.

        Returns when every HTTP process uses it. Raises UnknownModel, Draining, and LoadFailed if it cannot be served;
        then nothing has changed.
        """
        async with self._control:
            if self._draining:
                raise Draining("the service is shutting down", retry_after_s=1)
            source = await blocking.run(self._sources.find, name, version)
            self._check_memory(source)
            key = self._add(source)
            loaded = self._loads[key]
            self._note(source, "LOADING")
            try:
                await self._start(loaded)
            finally:
                del self._notes[name, source.version]
                if loaded.pool.state.phase != "ready":
                    await self._end(key)
                    self._refresh()
            if loaded.pool.state.phase != "ready":
                reason = loaded.pool.state.failure or loaded.pool.state.reason
                self._note(source, "UNAVAILABLE", reason)
                raise LoadFailed(f"{name}, version {source.version}: {reason}")
            await self._switch(name, key)

    async def unload(self, name: str) -> None:
        """Stop serving a model. Its running requests are answered first. Raises UnknownModel if it is not loaded."""
        async with self._control:
            if name not in self._current:
                raise UnknownModel(f"the model {name[:100]!r} is not loaded")
            await self._switch(name, None)
            log.info("model %s is unloaded", name)

    async def _switch(self, name: str, key: int | None) -> None:
        """Use another load for all later requests, in every HTTP process; let the former one end in the background."""
        former = self._current.pop(name, None) if key is None else self._current.get(name)
        if key is not None:
            self._current[name] = key
        self.state = self._state(self.state.serial + 1)
        self._announce()
        if former is not None:
            self._note(self._loads[former].source, "UNLOADING")
            self._group.create_task(self._retire(former), name=f"end {name}")
        await self._confirmed(self.state.serial)

    async def _confirmed(self, serial: int) -> None:
        """Wait until every HTTP process uses the state with this serial, or a later one."""
        await self._until(lambda: all(user.seen >= serial for user in self.users))

    async def _retire(self, key: int) -> None:
        """End the device processes of a model when no request uses it."""
        await self._confirmed(self.state.serial)
        await self._until(lambda: not self._held[key] and not any(user.uses(key) for user in self.users))
        source = self._loads[key].source
        await self._end(key)
        if self._notes.get((source.name, source.version)) == _entry(source, "UNLOADING"):
            del self._notes[source.name, source.version]
        self._refresh()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._users_changed.clear()
            await self._users_changed.wait()

    def _add(self, source: ModelSource) -> int:
        """Make the pool of a model; it is not started. Raises LoadFailed when there are too many names."""
        number = self._numbers.setdefault(source.name, len(self._numbers))
        if number >= MODELS:
            del self._numbers[source.name]
            raise LoadFailed(
                f"this server has had models of {MODELS} names, which is the limit; restart it to use others"
            )
        key = next(self._keys)
        settings = settings_for(self._settings, source)
        model = ModelId(source.name, source.version, key, number)
        metrics = self._metrics.model(source.name)
        pool = Pool(settings, metrics, self.slots, model, self._worker, self._turns, self._pool_changed)
        self._loads[key] = _Loaded(source, pool)
        return key

    async def _start(self, loaded: _Loaded) -> None:
        """Start the devices of a model, at low priority if others serve. Wait until they are ready or have failed."""
        start, pool = time.monotonic(), loaded.pool
        serving = any(one.phase == "ready" for one in self.state.models)
        loaded.task = self._group.create_task(pool.run(background=serving), name=f"model {loaded.source.name}")
        loaded.task.add_done_callback(lambda _: pool.settled.set())  # also when it is cancelled
        await pool.settled.wait()
        if pool.state.has_been_ready:
            name, default = loaded.source.name, loaded.source.name == self._default
            hint = f"; try: curl --data-binary @photo.jpg {self._settings.url}/v1/classify" if default else ""
            log.info("ready in %.1f s: %s, version %s%s", time.monotonic() - start, name, loaded.source.version, hint)

    def _check_memory(self, source: ModelSource) -> None:
        """Raise LoadFailed if a second process like that of the version which serves now does not fit into memory."""
        key = self._current.get(source.name)
        if key is None:  # nothing was measured yet
            return
        others = [device for loaded in self._loads.values() for device in loaded.pool.state.devices]
        problem = shortage(self._loads[key].pool.state.devices, others, memory.free_bytes())
        if problem:
            raise LoadFailed(f"{source.name}, version {source.version}: {problem}")

    async def _end(self, key: int) -> None:
        loaded = self._loads[key]
        loaded.ends = True
        if loaded.task is not None:
            loaded.task.cancel()
            await asyncio.gather(loaded.task, return_exceptions=True)
        await loaded.pool.close()
        del self._loads[key]
        if loaded.source.name not in self._current:
            self._metrics.model(loaded.source.name).unloaded()

    # --- state ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._pool_changed.wait()
            self._pool_changed.clear()
            self._refresh()

    def _refresh(self) -> None:
        """Replace `state` if something has changed."""
        state = self._state(self.state.serial)
        if state != self.state:
            self.state = state
            self._announce()

    def _announce(self) -> None:
        self.changed.set()
        serving = {one.id.name: one.phase == "ready" for one in self.state.models}
        for name, ready in serving.items():
            self._metrics.model(name).ready(ready)
        default = self.state.find()
        if default is not None and default.failure:
            self.failed.set()

    def _state(self, serial: int = 0) -> BackendState:
        models = tuple([self._loads[key].pool.state for key in self._current.values()])
        return BackendState(self._default, models, serial)

    def _note(self, source: ModelSource, state: IndexState, reason: str = "") -> None:
        self._notes[source.name, source.version] = _entry(source, state, reason)


def _serving(loaded: _Loaded) -> IndexEntry:
    """The entry of a model that serves, or is to serve."""
    state = loaded.pool.state
    if state.failure:
        return _entry(loaded.source, "UNAVAILABLE", state.failure)
    return _entry(loaded.source, "READY" if state.has_been_ready else "LOADING")


def _entry(source: ModelSource, state: IndexState, reason: str = "") -> IndexEntry:
    return IndexEntry(source.name, source.version, state, reason)
