"""A simulated device with a virtual clock, and models that take turns on it. Each job is a batch of its own."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from service.devices.turns import DeviceTurns


class Device:
    """Runs the events in order of time; after each one it checks that one model runs, if one has jobs."""

    def __init__(self) -> None:
        self.turns = DeviceTurns()
        self.now = 0.0
        self.models: list[Model] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._number), event))

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            while woken := [model for model in self.models if model.wake.is_set()]:
                for model in woken:
                    model.look()
            self._check()

    def _check(self) -> None:
        running = [model for model in self.models if model.running]
        assert len(running) <= 1, "two models have batches on the device"
        assert running or not any(model.queue for model in self.models), "the device is idle while a model has jobs"


class Model:
    """A model as its dispatcher acts: it looks when it is woken, and has at most `depth` batches on the device.

    A model in the background has a claim without a queue for each batch, as `service.devices.turns.background`.
    """

    def __init__(self, device: Device, *, depth: int = 1, weight: float = 1.0, background: bool = False) -> None:
        self.queue: list[tuple[float, float]] = []  # when a job arrived, and how long it takes
        self.running: list[tuple[float, float]] = []  # when a batch ends, and how long it takes
        self.wake = asyncio.Event()
        self.seconds = 0.0  # of batches that have ended
        self.delays: list[float] = []  # from the arrival of a job until its batch was sent
        self.weight = weight
        self._device, self._depth, self._background = device, depth, background
        device.models.append(self)
        self.join()

    def join(self) -> None:
        queue = None if self._background else self.queue
        self.claim = self._device.turns.join(queue, self.wake, weight=self.weight)
        self.wake.set()

    def submit(self, *seconds: float) -> None:
        self.queue += [(self._device.now, each) for each in seconds]
        self.wake.set()

    def cancel(self) -> None:
        """Remove the waiting jobs, without a word to anybody, as `Pool.cancel`."""
        self.queue.clear()
        if self._background:
            self._join_again()

    def restart(self) -> None:
        """Lose the process with its batches, and start another."""
        self.running.clear()
        self._join_again()

    def quit(self) -> None:
        """Lose the process with its batches, for ever."""
        self.running.clear()
        self._device.models.remove(self)
        self.claim.leave()

    def look(self) -> None:
        self.wake.clear()
        while len(self.running) < self._depth:
            if not self.queue:
                self.claim.rest()
                return
            if not self.claim.may_begin():
                return
            self._begin()

    def _begin(self) -> None:
        device = self._device
        arrived_at, seconds = self.queue.pop(0)
        self.delays.append(device.now - arrived_at)
        batch = (self.running[-1][0] if self.running else device.now) + seconds, seconds
        self.running.append(batch)
        self.claim.begin()
        device.at(batch[0], lambda: self._end(batch))

    def _end(self, batch: tuple[float, float]) -> None:
        if not any(one is batch for one in self.running):  # lost with the process
            return
        self.running.remove(batch)
        self.seconds += batch[1]
        self.claim.end(batch[1])
        if self._background:
            self._join_again()
        self.wake.set()

    def _join_again(self) -> None:
        if not self.running:
            self.claim.leave()
            self.join()
