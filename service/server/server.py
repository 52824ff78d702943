"""Runs uvicorn with a graceful shutdown.

uvicorn closes its listener at the first signal and then ends with that signal. Here SIGTERM (or SIGINT) first turns
readiness off. Connections are still accepted for VIM_DRAIN_DELAY_MS, so that load balancers notice. Then the listener
closes, admitted work is finished, and the exit status is 0. A second SIGINT, or a SIGTERM some seconds later, ends the
process at once.

After the signal every answer has `Connection: close`, so that clients connect to another server. A request that arrives
over an open connection directly after the listener has closed is still served.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import ProcessContext, create_app, infer_app
from service.devices.pool import WORKER
from service.engine.engine import Engine
from service.server import metrics_port
from service.server.prefork import parent
from service.server.prefork.remote_registry import RemoteRegistry
from service.server.protocol import protocol
from service.server.signals import Signals
from service.settings import Settings
from service.system import descriptors, sched_slice

LISTENERS = 16  # for each address; one iteration of the event loop accepts one connection from each listener
LINGER_S = 0.25  # how long open connections may send another request after the listener has closed
SWITCH_S = 1e-4  # Python's switch interval; its default of 5 ms is longer than a request takes
COLLECT_AFTER = 10_000  # new objects until Python's garbage collector runs; five requests reach the default, 700
ABANDON_S = 3  # time for the rest of the shutdown, after unfinished work was answered with 503

log = logging.getLogger("vim.server")


class Server(uvicorn.Server):
    """Handles the signals. `failed` is true after the end if the model could no longer be served.

    `connections` limits those of each port. `parent` connects one of several HTTP processes to their parent; without it
    this process serves the metrics port.
    """

    def __init__(
        self, config: uvicorn.Config, engine: Engine, connections: int, parent: RemoteRegistry | None = None
    ) -> None:
        super().__init__(config)
        self.failed = False
        self._engine = engine
        self._connections = connections
        self._parent = parent
        self._signals = Signals()
        self._failure: asyncio.Task[None] | None = None
        self._resources = contextlib.AsyncExitStack()
        self._grpc = contextlib.AsyncExitStack()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replace uvicorn's handler, which raises the signal again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with settings for an event loop and decoding threads that share one interpreter lock."""
        if self._parent is None:
            await self._serve_metrics()
        if self._engine.settings.grpc_port is not None:
            await self._serve_grpc()
        await super().startup(sockets)
        self._failure = asyncio.create_task(self._watch_failure())
        if self.started:
            await self._listen_more()
        gc.freeze()  # the collector then ignores all objects that exist now
        gc.set_threshold(COLLECT_AFTER)
        sys.setswitchinterval(SWITCH_S)
        sched_slice.shorten()
        if self._parent is not None:
            self._parent.listening()

    async def _serve_metrics(self) -> None:
        try:
            await self._resources.enter_async_context(
                metrics_port.metrics_port(self._engine.settings, self._engine.metrics)
            )
        except OSError as error:
            log.error("VIM_METRICS_PORT: %s", error)
            sys.exit(1)

    async def _serve_grpc(self) -> None:
        from service.grpc.server import grpc_server  # an extra, and half a second

        app: Any = self.config.app
        try:
            await self._grpc.enter_async_context(
                grpc_server(app, infer_app(app), self._engine.settings, self._connections)
            )
        except OSError as error:
            log.error("VIM_GRPC_PORT: %s", error)
            sys.exit(1)

    async def _watch_failure(self) -> None:
        await self._engine.backend.failed.wait()
        self._give_up()

    async def _listen_more(self) -> None:
        """Add listeners: the loop accepts one connection from each per iteration, which is too slow under load."""
        loop, config = asyncio.get_running_loop(), self.config

        def connection() -> asyncio.Protocol:
            kind: Any = config.http_protocol_class
            made: asyncio.Protocol = kind(
                config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        listeners = [socket.fromfd(one.fileno(), one.family, one.type) for s in self.servers for one in s.sockets]
        for listener in listeners * (LISTENERS - 1):
            server = await loop.create_server(connection, sock=listener.dup(), ssl=config.ssl, backlog=config.backlog)
            self.servers.append(server)
        for listener in listeners:
            listener.close()

    def _on_signal(self, number: int) -> None:
        if self._signals.repeated(number, time.monotonic()):
            log.warning("%s again: ending at once", signal.Signals(number).name)
            os._exit(128 + number)
        if self._signals.count > 1:
            return
        log.info("%s: draining", signal.Signals(number).name)
        self._engine.backend.drain()
        self._close_after_answers()
        asyncio.get_running_loop().call_later(self._engine.settings.drain_delay_ms / 1000, self._stop)

    def _close_after_answers(self) -> None:
        """Add `Connection: close` to every answer from now on."""
        header = (b"connection", b"close")
        self.config.encoded_headers.append(header)  # uvicorn makes the default headers from these every second
        self.server_state.default_headers.append(header)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, and idle connections `LINGER_S` later; uvicorn closes both at the same time."""
        for server in self.servers:
            server.close()
        await asyncio.gather(asyncio.sleep(LINGER_S), self._grpc.aclose())
        await super().shutdown(sockets)
        if self._failure is not None:
            self._failure.cancel()
        await self._resources.aclose()

    def _stop(self) -> None:
        """Let uvicorn wait for its connections. Answer those left after VIM_DRAIN_TIMEOUT_MS with 503."""
        self.should_exit = True
        asyncio.get_running_loop().call_later(self._engine.settings.drain_timeout_ms / 1000, self._engine.abandon)

    def _give_up(self) -> None:
        self.failed = True
        self._close_after_answers()
        self._stop()
        self._engine.abandon()


def serve(settings: Settings, worker: str = WORKER) -> int:
    """Serve until a signal; returns the exit status. Raises SettingsError at the start."""
    descriptors.raise_limit()
    if settings.http_workers > 1:
        return parent.serve(settings, worker)
    return _run(create_app(settings, worker), settings)


def serve_child(settings: Settings, context: ProcessContext, pool: RemoteRegistry, sockets: list[socket.socket]) -> int:
    """Serve as one of several HTTP processes, which accept connections from these sockets; returns the exit status."""
    return _run(create_app(settings, context=context), settings, sockets, pool)


def _run(
    app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None, pool: RemoteRegistry | None = None
) -> int:
    connections = descriptors.available() // (1 if settings.grpc_port is None else 2)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        ws="none",
        http=protocol(settings.header_timeout_ms / 1000, connections),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_ms / 1000,  # type: ignore[arg-type]  # any number works
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=settings.drain_timeout_ms // 1000 + ABANDON_S,
    )
    server = Server(config, app.state.engine, connections, pool)
    try:
        server.run(sockets)
    except SystemExit:  # a port is taken, or uvicorn could not start
        return 1
    if server.failed and pool is None:
        log.critical("ended: %s", app.state.engine.failure)  # the last line of the log
    return 1 if server.failed else 0
