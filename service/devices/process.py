"""This side of a device process: starts it, hands it batches, notices its end. Policy is in `engine` and `batcher`."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from service.devices.messages import (
    Attach,
    BatchDone,
    BatchFailed,
    Ended,
    FromDevice,
    Loaded,
    Ready,
    RunBatch,
    Start,
    StartFailed,
)
from service.ipc import Link
from service.jobs import Job
from service.settings import Settings
from service.system import cpus

EXIT_TIMEOUT_S = 5.0
_ABOVE_PACKAGES = Path(__file__).resolve().parents[2]


def python_command(module: str, *arguments: object) -> list[str]:
    """How to run a module as a program. -P: a file of the same name in the current folder is not imported."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def python_environment() -> dict[str, str]:
    """Our environment, with our own packages first on the path of such a program."""
    path = filter(None, (str(_ABOVE_PACKAGES), os.environ.get("PYTHONPATH")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


class DeviceLost(Exception):  # noqa: N818 - an event, not a programming error
    """The device process could not start, or ended; the message says why."""


class BatchError(Exception):
    """The forward pass of a batch failed, the process goes on."""

    def __init__(self, kind: Literal["error", "out_of_memory"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Device:
    """One device process. As many batches may be out as it says; they are answered in order."""

    def __init__(
        self, settings: Settings, name: str, arena_descriptor: int, module: str = "service.devices.worker"
    ) -> None:
        self.name = name
        self.on_lost: Callable[[], None] = lambda: None
        self.watchdog_s: float | None = None  # a batch that takes longer means that the process hangs
        self._settings = settings
        self._arena_descriptor = arena_descriptor
        self._module = module
        self._ids = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._watch: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[FromDevice] = asyncio.Queue()
        self._lost: DeviceLost | None = None
        self._answers: dict[int, asyncio.Future[BatchDone | BatchFailed]] = {}  # of the batches that are out

    async def start(self) -> Loaded:
        """Start the process and wait until its model is in memory. Raises DeviceLost."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs.fileno())
        self._link = await Link.over(ours, self._take)
        self._watch = asyncio.create_task(self._until_ended(self._link), name=f"watch {self.name}")
        self._link.say(Start(self._settings.model_dump_json(), self.name))
        loaded = await self._receive()
        assert isinstance(loaded, Loaded)
        return loaded

    async def warm_up(self, slots: int) -> Ready:
        """Attach the mapped arena and wait until the process is self-tested and warm. Raises DeviceLost."""
        assert self._link is not None
        self._link.say(Attach(slots))
        ready = await self._receive()
        assert isinstance(ready, Ready)
        return ready

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        """One forward pass. Raises BatchError when it failed there, DeviceLost when the process ended or hangs."""
        self.check()
        assert self._link is not None
        order = RunBatch(next(self._ids), tuple(job.slot for job in batch), tuple(job.task for job in batch))
        ahead = list(self._answers.values())
        future: asyncio.Future[BatchDone | BatchFailed] = asyncio.get_running_loop().create_future()
        self._answers[order.id] = future
        self._link.say(order)
        if ahead:
            await asyncio.wait(ahead)  # its own time begins when those before it are done
        try:
            async with asyncio.timeout(self.watchdog_s):
                answer = await future
        except TimeoutError:
            hang = f"it hangs: a batch of {len(batch)} took longer than {self.watchdog_s:g} s"
            raise self._lose(hang) from None
        if isinstance(answer, BatchFailed):
            raise BatchError(answer.kind, answer.reason)
        if len(answer.rows) != len(batch):
            raise self._lose(f"{len(answer.rows)} results came back for a batch of {len(batch)}")
        return answer

    async def close(self) -> None:
        """End the process: at once if it is lost or at work, else by closing its connection."""
        if self._process is None:
            return
        if self._link is not None:
            self._link.close()
        if self._lost is not None or self._answers:
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.wait, EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    @property
    def pid(self) -> int | None:
        """Process id, once started."""
        return self._process.pid if self._process else None

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        threads = self._settings.threads or cpus.available_cpus()
        return subprocess.Popen(
            python_command(self._module, descriptor, self._arena_descriptor),
            env=self._compiled_code()
            | python_environment()
            | cpus.thread_environment(threads)
            | cpus.heap_environment(),
            pass_fds=(descriptor, self._arena_descriptor),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent to act on
        )

    def _compiled_code(self) -> dict[str, str]:
        """Where numba keeps it, unless the environment says otherwise: the next start then need not compile."""
        return {"NUMBA_CACHE_DIR": str(self._settings.cache_dir / "numba")}

    def check(self) -> None:
        """Raise DeviceLost if the process has ended, also when it was idle."""
        if self._lost is not None:
            raise self._lost

    async def _receive(self) -> FromDevice:
        message = await self._inbox.get()
        if isinstance(message, StartFailed):
            raise DeviceLost(message.reason)
        if isinstance(message, Ended):
            self.check()
        return message

    async def _until_ended(self, link: Link) -> None:
        await link.ended
        self._lose(f"the device process {await self._fate()}")

    def _take(self, message: FromDevice) -> None:
        if not isinstance(message, (BatchDone, BatchFailed)):
            self._inbox.put_nowait(message)
        elif not (answer := self._answers.pop(message.id)).done():
            answer.set_result(message)

    def _lose(self, reason: str) -> DeviceLost:
        """Whoever waits for the process is told, and whoever asks from now on; the first reason counts."""
        self._lost = self._lost or DeviceLost(reason)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost)
        self._inbox.put_nowait(Ended())
        self.on_lost()
        return self._lost

    async def _fate(self) -> str:
        assert self._process is not None
        try:
            status = await asyncio.to_thread(self._process.wait, EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
