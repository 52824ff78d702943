"""The parent's side of one device process: starts it, sends it batches, detects its end.

`service.devices.supervisor` decides when to start it, `service.devices.dispatcher` which batches it receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
from collections.abc import Sequence
from typing import Literal

from service.devices.messages import (
    Attach,
    BatchDone,
    BatchFailed,
    FromDevice,
    Loaded,
    Ready,
    RunBatch,
    Start,
    StartFailed,
    Warmed,
    WarmUp,
)
from service.ipc import Connection
from service.jobs import Area, Job
from service.settings import Settings
from service.system import blocking, cpus
from service.system.programs import python_command, python_environment

EXIT_TIMEOUT_S = 5.0
TICKS = 5  # waits into which the watchdog's time is divided


class DeviceLost(Exception):  # noqa: N818 - an event, not a programming error
    """The device process could not start, or ended; the message says why."""


class BatchError(Exception):
    """The forward pass of a batch failed; the process continues."""

    def __init__(self, kind: Literal["error", "out_of_memory"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class DeviceProcess:
    """One device process. It answers its batches in order."""

    def __init__(
        self, settings: Settings, name: str, slots_descriptor: int, module: str, wake: asyncio.Event | None = None
    ) -> None:
        """`module` is the program that runs in the process. `wake` is set when the process is lost."""
        self.lost: DeviceLost | None = None
        self.watchdog_s: float | None = None  # a batch that takes longer means that the process hangs
        self._settings = settings
        self._name = name
        self._slots_descriptor = slots_descriptor
        self._module = module
        self._wake = wake
        self._ids = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection
        self._watch: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[FromDevice | None] = asyncio.Queue()  # None: the connection is closed
        self._answers: dict[int, asyncio.Future[BatchDone | BatchFailed]] = {}  # of the batches in flight

    async def start(self, *, background: bool = False) -> Loaded:
        """Start the process and wait until its model is in memory, at low priority with `background`.

        Raises DeviceLost.
        """
        try:
            ours, theirs = socket.socketpair()
            with contextlib.ExitStack() as on_error, theirs:
                on_error.enter_context(ours)
                self._process = self._spawn(theirs.fileno())
                on_error.pop_all()  # the connection keeps our end
        except OSError as error:  # no descriptors, processes or memory
            raise DeviceLost(f"the device process cannot be started: {error}") from error
        self._connection = await Connection.open(ours, FromDevice, self._on_message)
        self._watch = asyncio.create_task(self._until_ended(), name=f"watch {self._name}")
        self._connection.send(Start(self._settings.model_dump_json(), self._name, background))
        loaded = await self._receive()
        assert isinstance(loaded, Loaded)
        return loaded

    def attach(self, slots: int, area: Area) -> None:
        """Let the process map the pixels of all slots; `slots` is their number."""
        self._connection.send(Attach(slots, area))

    async def warm_up(self) -> Ready | None:
        """Run one pass of the warm-up; None if there are more. Raises DeviceLost."""
        self._connection.send(WarmUp())
        message = await self._receive()
        assert isinstance(message, (Warmed, Ready))
        return message if isinstance(message, Ready) else None

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        """Run one forward pass. Raises BatchError if it failed, DeviceLost if the process ended or hangs."""
        self.check()
        order = RunBatch(next(self._ids), tuple([job.slot for job in batch]), tuple([job.task for job in batch]))
        ahead = list(self._answers.values())
        future: asyncio.Future[BatchDone | BatchFailed] = asyncio.get_running_loop().create_future()
        self._answers[order.id] = future
        self._connection.send(order)
        if ahead:
            await asyncio.wait(ahead)  # the watchdog's time begins when the earlier batches are done
        tick_s = None if self.watchdog_s is None else self.watchdog_s / TICKS
        try:
            for _ in range(TICKS):  # a pause of this program (SIGSTOP) counts as one tick at most
                if (await asyncio.wait([future], timeout=tick_s))[0]:
                    break
        finally:
            future.cancel()  # no effect if the answer has arrived
        if future.cancelled():
            raise self._lose(f"it hangs: a batch of {len(batch)} took longer than {self.watchdog_s:g} s")
        answer = future.result()
        if isinstance(answer, BatchFailed):
            raise BatchError(answer.kind, answer.reason)
        if len(answer.rows) != len(batch):
            raise self._lose(f"{len(answer.rows)} results came back for a batch of {len(batch)}")
        return answer

    async def close(self) -> None:
        """End the process: kill it if it is lost or runs a batch, else close its connection."""
        if self._process is None:
            return
        if self._watch is not None:
            self._connection.close()
        if self.lost is not None or self._answers:
            self._process.kill()
        await blocking.ended(self._process, EXIT_TIMEOUT_S)

    @property
    def pid(self) -> int | None:
        """The process id, once started."""
        return self._process.pid if self._process else None

    def check(self) -> None:
        """Raise DeviceLost if the process has ended, also when it was idle."""
        if self.lost is not None:
            raise self.lost

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        threads = self._settings.threads or cpus.available_cpus()
        return subprocess.Popen(
            python_command(self._module, descriptor, self._slots_descriptor),
            env=self._compiled_code()
            | python_environment()
            | cpus.thread_environment(threads)
            | cpus.heap_environment(),
            pass_fds=(descriptor, self._slots_descriptor),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C goes to the parent only
        )

    def _compiled_code(self) -> dict[str, str]:
        """Where numba keeps compiled code, so that the next start need not compile; the environment overrides it."""
        directory = self._settings.cache_dir
        return {} if directory is None else {"NUMBA_CACHE_DIR": str(directory / "numba")}

    async def _receive(self) -> FromDevice:
        message = await self._inbox.get()
        if isinstance(message, StartFailed):
            raise DeviceLost(message.reason)
        if message is None:
            raise self.lost or DeviceLost("the device process closed its connection")
        return message

    async def _until_ended(self) -> None:
        await self._connection.ended
        self._lose(f"the device process {await self._exit_reason()}")

    def _on_message(self, message: FromDevice) -> None:
        if not isinstance(message, (BatchDone, BatchFailed)):
            self._inbox.put_nowait(message)
        elif not (answer := self._answers.pop(message.id)).done():
            answer.set_result(message)

    def _lose(self, reason: str) -> DeviceLost:
        """Mark the process as lost and fail everything that waits for it; the first reason is kept."""
        self.lost = self.lost or DeviceLost(reason)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self.lost)
        self._inbox.put_nowait(None)
        if self._wake is not None:
            self._wake.set()
        return self.lost

    async def _exit_reason(self) -> str:
        assert self._process is not None
        status = await blocking.exit_status(self._process, EXIT_TIMEOUT_S)
        if status is None:
            return "closed its connection"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
