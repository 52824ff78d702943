"""The parent of several HTTP processes (VIM_HTTP_WORKERS): starts them, replaces those that end, owns the devices.

The HTTP processes accept connections on one port and decode images. Their jobs are in one queue, in the parent
(`service.server.prefork.broker`). With one HTTP process there is no parent, only `service.server.server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time

import uvloop

from service.app import make_metrics
from service.devices.usage import MODELS, Usage
from service.ipc import Connection
from service.registry.sources import Sources
from service.server import metrics_port
from service.server.prefork import counts, sockets
from service.server.prefork.broker import Broker, Channel
from service.server.prefork.messages import ChildStart, FromChild, Listening
from service.server.signals import Signals
from service.settings import Settings
from service.system import blocking, sched_slice
from service.system.programs import python_command, python_environment
from service.telemetry.multiprocess import MultiprocessDirectory, shared_directory

log = logging.getLogger("vim.parent")

STATE_S = 0.25  # how often the HTTP processes receive values that change all the time
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # before the first, second, ... replacement in a row; the last one repeats
STABLE_S = 60.0  # a process that ran for longer ends the row
HUNG_S = 2.5  # a process whose event loop has not run for this time hangs, or was stopped; it reports every `REPORT_S`
START_S = 120.0  # the same for one that starts
CHECK_S = 0.5  # how often that is checked
EXIT_S = 5.0  # a process that has closed its connection is killed after this time
MARGIN_S = 10.0  # a shutdown may take this much longer than the settings allow


class NoStart(Exception):  # noqa: N818 - an event
    """An HTTP process ended before it first accepted connections; the argument is its exit status."""


class Child:
    """One HTTP process and its replacements."""

    def __init__(
        self, broker: Broker, start: ChildStart, metrics: MultiprocessDirectory, usage: Usage, counts_descriptor: int
    ) -> None:
        self.listening = asyncio.Event()
        self._broker = broker
        self._start = start
        self._metrics = metrics
        self._usage = usage
        self._counts_descriptor = counts_descriptor
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel
        self._ending = False

    async def run(self) -> None:
        """Run the process and replace it when it ends, until `end` is called. Raises NoStart."""
        in_a_row = 0
        while not self._ending:
            began = time.monotonic()
            status = await self._live()
            if self._ending:
                return
            if not self.listening.is_set():
                raise NoStart(status)
            in_a_row = 1 if time.monotonic() - began > STABLE_S else in_a_row + 1
            log.error("%s %s; starting another", self._start.name, _fate(status))
            await asyncio.sleep(BACKOFF_S[min(in_a_row, len(BACKOFF_S)) - 1])

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Let the process finish its requests; do not replace it. SIGTERM is sent once."""
        if self._ending and number == signal.SIGTERM:
            return
        self._ending = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def _live(self) -> int:
        """Run one process from start to end; return its exit status."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = process = self._spawn(theirs.fileno())
        except OSError as error:  # no descriptors, processes or memory: tried again like a process that ended
            log.error("%s cannot be started: %s", self._start.name, error)
            return 1
        connection = await Connection.open(ours, FromChild, self._on_message)
        connection.send(self._start)
        self._channel = self._broker.open(self._start.number, connection)
        watch = asyncio.create_task(self._kill_if_hung(process))
        try:
            await connection.ended
            return await blocking.ended(process, EXIT_S)
        finally:
            watch.cancel()
            self._broker.close(self._start.number)
            self._usage.clear()
            self._metrics.mark_dead(self._start.name)
            connection.close()

    async def _kill_if_hung(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process when its event loop has not run for `HUNG_S`.

        The seconds are counted here, because a clock would run on while this parent is stopped.
        """
        beats, silent_s = 0, 0.0
        while silent_s < (HUNG_S if beats else START_S) or self._ending:
            await asyncio.sleep(CHECK_S)
            silent_s = silent_s + CHECK_S if self._usage.beats.own[0] == beats else 0.0
            beats = self._usage.beats.own[0]
        log.error("%s hangs: its event loop has not run for %.1f s", self._start.name, silent_s)
        process.kill()

    def _on_message(self, message: FromChild) -> None:
        if isinstance(message, Listening):
            self.listening.set()
        else:
            self._channel.receive(message)

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        inherited = (descriptor, self._broker.slots.descriptor, self._counts_descriptor)
        return subprocess.Popen(
            python_command("service.server.prefork.child", *inherited, os.getpid()),
            env=python_environment(),
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C goes to the parent only
        )


class Parent:
    """The whole service: its devices, its HTTP processes, its signals."""

    def __init__(self, settings: Settings, worker: str, addresses: tuple[sockets.Address, ...], directory: str) -> None:
        self._settings = settings
        self._addresses = addresses
        shared = MultiprocessDirectory(directory, "parent")
        self._metrics = make_metrics(settings, settings.queue_images, shared)
        self._broker = Broker(settings, self._metrics, worker)
        memory = counts.memory(settings)
        created = int(time.time())
        self._children = [
            Child(
                self._broker,
                ChildStart(settings.model_dump_json(), f"http-{n + 1}", n, addresses, directory, created),
                shared,
                counts.mapped(settings, memory, n).usage,
                memory,
            )
            for n in range(settings.http_workers)
        ]
        self._signals = Signals()

    async def run(self) -> int:
        """Serve until a signal, or until the devices are given up; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        async with contextlib.AsyncExitStack() as resources:
            try:
                await resources.enter_async_context(metrics_port.metrics_port(self._settings, self._metrics))
            except OSError as error:
                log.error("VIM_METRICS_PORT: %s", error)
                return 1
            return await self._serve()

    async def _serve(self) -> int:
        work = self._broker.run(), self._send_state(), self._watch_failure()
        background = [asyncio.create_task(one) for one in work]
        status = 0
        try:
            await self._run_children()
        except* NoStart as failed:
            status = max(1, int(str(failed.exceptions[0])))  # a negative one is a signal
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._broker.registry.close()
        default = self._broker.registry.state.find()
        if default is None or not default.failure:
            return status
        log.critical("ended: %s", default.failure)  # the last line of the log
        return 1

    async def _run_children(self) -> None:
        """Start the first process; when it accepts connections, the settings are valid, and all others are started."""
        try:
            async with asyncio.TaskGroup() as group:
                first, *others = self._children
                running = [group.create_task(first.run())]
                await _first_of(first.listening.wait(), running[0])
                if not running[0].done():
                    running += [group.create_task(child.run()) for child in others]
                    await _first_of(_all_listen(others), *running)
                    if all(child.listening.is_set() for child in others):
                        self._log_addresses()
        finally:
            for child in self._children:
                child.end(signal.SIGKILL)

    def _log_addresses(self) -> None:
        scheme = "https" if self._settings.tls_cert else "http"
        for _, (host, number, *_) in self._addresses:
            address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}"
            log.info("running on %s with %d HTTP processes", address, len(self._children))

    async def _send_state(self) -> None:
        while True:
            await asyncio.sleep(STATE_S)
            self._metrics.sample()
            self._broker.send_state()

    async def _watch_failure(self) -> None:
        await self._broker.registry.failed.wait()
        self._end()

    def _on_signal(self, number: int) -> None:
        if self._signals.repeated(number, time.monotonic()):
            log.warning("%s again: ending at once", signal.Signals(number).name)
            os._exit(128 + number)  # the kernel ends the children
        if self._signals.count > 1:
            return
        log.info("%s: draining", signal.Signals(number).name)
        self._broker.registry.drain()
        self._end()

    def _end(self) -> None:
        for child in self._children:
            child.end()
        settings = self._settings
        patience_s = (settings.drain_delay_ms + settings.drain_timeout_ms) / 1000 + MARGIN_S
        asyncio.get_running_loop().call_later(patience_s, self._end_now)

    def _end_now(self) -> None:
        for child in self._children:
            child.end(signal.SIGKILL)


def serve(settings: Settings, worker: str) -> int:
    """Serve until a signal; returns the exit status. Raises SettingsError at the start."""
    with contextlib.ExitStack() as kept:
        try:
            addresses = kept.enter_context(sockets.kept(settings.host, settings.port))
        except OSError as error:
            log.error("cannot listen on %s, port %d: %s", settings.host, settings.port, error)
            return 1
        directory = kept.enter_context(shared_directory(settings.http_workers + 1, _most_models(settings)))
        sched_slice.shorten()
        return uvloop.run(Parent(settings, worker, addresses, directory).run())


def _most_models(settings: Settings) -> int:
    """The number of models that may be served at some time: folders may be added to a repository."""
    return MODELS if settings.model_repository else len(Sources.of(settings).names())


async def _all_listen(children: list[Child]) -> None:
    for child in children:
        await child.listening.wait()


async def _first_of(*awaitables: object) -> None:
    tasks = [asyncio.ensure_future(one) for one in awaitables]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _fate(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
