"""uvicorn, with our own idea of a shutdown.

Plain uvicorn closes its listener at the first signal and then dies of it. Here SIGTERM (or SIGINT) first turns
readiness off while still listening, for VIM_DRAIN_DELAY_MS, so that load balancers look away; then the listener closes,
accepted work is finished, and the exit status is 0. A second signal ends the process at once.

From the signal on every answer says `Connection: close`, so that clients look for another server by themselves; and a
request that is on its way over an open connection when the listener closes is still taken for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from service.app import create_app
from service.devices.pool import WORKER
from service.engine.engine import Engine
from service.errors import SettingsError
from service.server.prefork import parent
from service.server.prefork.remote_pool import Outpost
from service.server.protocol import protocol
from service.settings import Settings
from service.system import sched_slice

LISTENERS = 16  # for each address; as many connections are accepted in a turn of the event loop
LINGER_S = 0.25  # how long open connections may bring another request after the listener has closed
SWITCH_S = 1e-4  # loop and decode threads wait for each other so long; Python's own 5 ms are more than a request takes
ABANDON_S = 3  # what is left of the shutdown once unfinished work has been answered 503

log = logging.getLogger("vim.server")


class Server(uvicorn.Server):
    """Owns the signals; `failed` tells after the end whether the engine gave up."""

    def __init__(self, config: uvicorn.Config, engine: Engine, listening: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self.failed = False
        self._listening = listening
        self._engine = engine
        self._signalled = False
        engine.fleet.on_failure = self._give_up

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's, which re-raises the signal when it is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """What suits a process whose event loop and decode threads share one interpreter lock."""
        await super().startup(sockets)
        if self.started:
            await self._listen_more()
        gc.freeze()  # from here on the collector looks at what requests leave behind, not at all that was imported
        sys.setswitchinterval(SWITCH_S)
        sched_slice.shorten()
        self._listening()

    async def _listen_more(self) -> None:
        """The loop takes one connection from a listener in each of its turns: under load they would come too late."""
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
        if self._signalled:
            log.warning("second signal: ending at once")
            os._exit(128 + number)
        self._signalled = True
        log.info("%s: draining", signal.Signals(number).name)
        self._engine.fleet.drain()
        self._say_goodbye()
        asyncio.get_running_loop().call_later(self._engine.settings.drain_delay_ms / 1000, self._stop)

    def _say_goodbye(self) -> None:
        goodbye = (b"connection", b"close")
        self.config.encoded_headers.append(goodbye)  # for when uvicorn makes the default headers anew, every second
        self.server_state.default_headers.append(goodbye)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, then what is idle; uvicorn does both in one instant."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)

    def _stop(self) -> None:
        """From here uvicorn waits for its connections; when the time for that is over they get their 503."""
        self.should_exit = True
        asyncio.get_running_loop().call_later(self._engine.settings.drain_timeout_ms / 1000, self._engine.abandon)

    def _give_up(self) -> None:
        self.failed = True
        self._say_goodbye()
        self._stop()
        self._engine.abandon()


def _check_certificate(settings: Settings) -> None:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        # Without a password of ours OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, lambda: "")
    except OSError as error:
        raise SettingsError(f"VIM_TLS_CERT and VIM_TLS_KEY cannot be used: {error.strerror or error}") from None


def serve(settings: Settings, worker: str = WORKER) -> int:
    """Serve until told to stop; returns the exit status. Raises SettingsError before that."""
    _check_certificate(settings)
    if settings.http_workers > 1:
        return parent.serve(settings, worker)
    return _run(create_app(settings, worker), settings)


def serve_part(settings: Settings, outpost: Outpost, sockets: list[socket.socket]) -> int:
    """The same for one of several HTTP processes, that listen on these sockets."""
    return _run(create_app(settings, outpost=outpost), settings, sockets, outpost.listening)


def _run(
    app: Any,
    settings: Settings,
    sockets: list[socket.socket] | None = None,
    listening: Callable[[], None] = lambda: None,
) -> int:
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        ws="none",
        http=protocol(settings.header_timeout_ms / 1000),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the usual idle time-out of a load balancer in front
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=settings.drain_timeout_ms // 1000 + ABANDON_S,
    )
    server = Server(config, app.state.engine, listening)
    try:
        server.run(sockets)
    except SystemExit as stop:  # uvicorn could not bind or start
        return int(stop.code or 1)
    return 1 if server.failed else 0
