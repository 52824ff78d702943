"""A real server in its own process, on a free port of 127.0.0.1, for tests that send signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from tests.e2e.faults import PREFIX

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90
T = TypeVar("T")
_ADDRESS = re.compile(r"running on (https?://127\.0\.0\.1:\d+)")


class Server:
    """`python -m service serve` with its log in a file.

    `faults` selects the device process of the fault tests, with these faults of `tests.e2e.faults`. `limits` is a
    shell command that the process runs before it becomes the server, such as `ulimit`.
    """

    def __init__(
        self, log: Path, *, faults: Mapping[str, object] | None = None, limits: str = "", **settings: object
    ) -> None:
        self.log_file = log
        module = "service" if faults is None else "tests.e2e.faulty_server"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VIM_")}
        variables = {f"VIM_{name.upper()}": str(value) for name, value in settings.items()}
        variables |= {PREFIX + name: str(value) for name, value in (faults or {}).items()}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*(_limited(limits) if limits else ()), sys.executable, "-m", module, "serve"],
                cwd=ROOT,
                env=clean
                | {"VIM_PORT": "0", "VIM_DEVICE": "cpu", "VIM_THREADS": "1", "VIM_REQUEST_TIMEOUT_MS": "120000"}
                | variables,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """The log of the server so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def url(self) -> str:
        """The address of the server; waits until it listens."""
        return str(self.wait_for(lambda: next(iter(_ADDRESS.findall(self.log)), None)))

    def client(self) -> httpx.Client:
        """An HTTP client for this server."""
        verify = self.url.startswith("http:")  # the certificates of tests are self-signed
        return httpx.Client(base_url=self.url, timeout=60, verify=verify)

    def wait_until_ready(self) -> None:
        """Wait until /readyz answers 200."""
        with self.client() as client:
            self.wait_for(lambda: client.get("/readyz").status_code == 200)

    def device_pid(self) -> int:
        """The process id of the device process."""
        (device,) = self.children()
        return device

    def status_of(self, path: str) -> int:
        """The status of a GET on a connection of its own."""
        return httpx.get(self.url + path, timeout=60).status_code

    def metric(self, name: str) -> float:
        """The value of one sample of /metrics."""
        page = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        assert found is not None, name
        return float(found.group(1))

    def signal_device(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to this device process, or else to the first."""
        os.kill(pid or self.children()[0], number)

    def requests_seen(self) -> set[str]:
        """Ids of the requests whose headers it has read, from its log: each request gets a line."""
        return set(re.findall(r'"request_id": "([^"]+)"', self.log))

    def children(self) -> list[int]:
        """The process ids of its living device processes."""
        return self._children("service.devices.worker", "faulty_worker")

    def http_processes(self) -> list[int]:
        """Process ids of its living HTTP processes, where it has several."""
        return self._children("service.server.prefork.child")

    def _children(self, *modules: str) -> list[int]:
        children = psutil.Process(self.process.pid).children()
        return [
            one.pid
            for one in children
            if one.status() != psutil.STATUS_ZOMBIE and any(word.endswith(modules) for word in _words(one))
        ]

    def info(self) -> dict[str, Any]:
        """The content of /info as JSON values."""
        with self.client() as client:
            found: dict[str, Any] = client.get("/info").json()
            return found

    def devices(self) -> list[dict[str, Any]]:
        """The part of /info about the device processes."""
        found: list[dict[str, Any]] = self.info()["devices"]
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server process only."""
        self.process.send_signal(number)

    def exit_status(self, timeout: float = 120) -> int:
        """Wait until the server ends; returns its exit status."""
        return self.process.wait(timeout)

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Poll until a condition is true; fails when the server ends or the time is over."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {START_TIMEOUT_S} s:\n{self.log}")


def free_port() -> int:
    """A port of 127.0.0.1 on which no server listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(
    directory: Path, *, faults: Mapping[str, object] | None = None, limits: str = "", **settings: object
) -> Iterator[Server]:
    """A ready server, which is killed afterwards if it still runs."""
    server = Server(directory / "server.log", faults=faults, limits=limits, **settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def _limited(limits: str) -> list[str]:
    """A command that runs the shell command and then the program; as root it has a mount namespace of its own."""
    private = ["unshare", "--mount"] if os.getuid() == 0 else []
    return [*private, "sh", "-c", f'{limits} && exec "$@"', "sh"]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):  # the process has just ended
        words: list[str] = process.cmdline()
        return words
    return []


def gone(pid: int, within_s: float) -> bool:
    """Whether the process ends in time; a zombie counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False
