"""The servers that the clients are run against: one that serves, one that can be made full, one that never gets ready.

`Servers` is passed as JSON to the environments of the clients, which have neither torch nor this project's packages. So
its methods need the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.clients import native
from tests.clients.pictures import picture

VARIABLE = "VIM_CLIENTS"  # removed from a server's environment like every VIM_ variable
NAME = "tiny"
MAX_BODY = 200_000
MAX_IMAGES = 4
PATIENCE_S = 60.0
ADMIN = "key-of-an-administrator"


@dataclass(frozen=True)
class Servers:
    """The addresses of the servers, and the device process of the one that can be made full."""

    normal: str
    full: str
    full_device: int
    starting: str
    grpc_normal: str  # host and port of the same servers
    grpc_full: str
    grpc_starting: str

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text that `to_json` has written."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Write the addresses as JSON, for an environment variable."""
        return json.dumps(asdict(self))

    @contextlib.contextmanager
    def held_full(self) -> Iterator[Hold]:
        """Inside this context the `full` server answers 429: an image on the stopped device has its only slot."""
        hold = Hold(self.full, self.full_device)
        try:
            hold.begin()
            yield hold
        finally:
            hold.release()


class Hold:
    """A stopped device process and the request that waits for it."""

    def __init__(self, url: str, device: int) -> None:
        self._url = url
        self._device = device
        self._refused = 0.0
        self._occupant = threading.Thread(target=self._occupy)

    def begin(self) -> None:
        """Stop the device and fill the queue."""
        os.kill(self._device, signal.SIGSTOP)
        self._occupant.start()
        self._wait(lambda: native.metric(self._url, "vim_queue_depth") == 1)
        self._refused = self._refusals()

    def release(self) -> None:
        """Continue the device, and wait until the slot is free."""
        os.kill(self._device, signal.SIGCONT)
        self._occupant.join(PATIENCE_S)
        self._wait(lambda: native.metric(self._url, "vim_queue_depth") == 0)

    def release_after_a_refusal(self) -> threading.Thread:
        """Continue the device in the background as soon as a request was refused."""

        def wait() -> None:
            self._wait(lambda: self._refusals() > self._refused)
            os.kill(self._device, signal.SIGCONT)

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    @property
    def refused(self) -> float:
        """The number of refused requests so far."""
        return self._refusals() - self._refused

    def _refusals(self) -> float:
        return native.metric(self._url, 'vim_rejected_total{reason="queue_full"}')

    def _occupy(self) -> None:
        with contextlib.suppress(OSError):
            native.embedding(self._url, picture(9))

    def _wait(self, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "the server did not get there"
            time.sleep(0.02)


@contextlib.contextmanager
def started(directory: Path) -> Iterator[Servers]:
    """Start all three servers with a tiny model; this needs the project's own environment."""
    from tests.e2e.server import Server, free_port, serving
    from tests.tiny import write_tiny_model

    model = write_tiny_model(directory / NAME)
    for name in ("normal", "full", "starting"):
        (directory / f"{name}.d").mkdir()
    ports = [free_port() for _ in range(3)]
    limits: dict[str, Any] = {"max_body_bytes": MAX_BODY, "max_images": MAX_IMAGES}
    one: dict[str, Any] = {"queue_images": 1, "max_batch": 1, "watchdog_ms": 600_000}
    control: dict[str, Any] = {"model_control": "explicit", "admin_keys": ADMIN}
    starting = Server(directory / "starting.d" / "server.log", model=model, grpc_port=ports[2])
    try:
        (unborn,) = starting.wait_for(starting.children)
        os.kill(unborn, signal.SIGSTOP)  # while it loads: the server stays in that state
        with (
            serving(directory / "normal.d", model=model, grpc_port=ports[0], **limits, **control) as normal,
            serving(directory / "full.d", model=model, grpc_port=ports[1], **one) as full,
        ):
            addresses = [f"127.0.0.1:{port}" for port in ports]
            yield Servers(normal.url, full.url, full.device_pid(), starting.url, *addresses)
    finally:
        for pid in starting.children():
            os.kill(pid, signal.SIGKILL)
        starting.process.kill()
        starting.process.wait()
