"""Runs under an interpreter that has Ray: a local cluster, load, a killed replica; prints what happened as JSON.

.ray/bin/python -m tests.deploy.ray_drill --model demo
.ray/bin/python -m tests.deploy.ray_drill --model demo --cost 30     # the proxy beside the plain server
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.e2e.server import serving
from tests.tiny import photo

CLIENTS = 8
IMAGES = 16
TRIES, PAUSE_S = 60, 0.25
MARK = "RAY_DRILL"  # in the environment of everything that this process starts
Answer = tuple[int, bytes]


def ask(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    """One request on a connection of its own. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def vector(port: int, image: bytes) -> tuple[list[float], list[int]]:
    """An image's embedding by a client that tries again, and what it was told before; 0 where no answer came."""
    refused: list[int] = []
    while len(refused) < TRIES:
        try:
            status, body = ask(port, "POST", "/v1/embed", image)
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status == 200:
            found: list[float] = json.loads(body)["results"][0]["embedding"]
            return found, refused
        refused.append(status)
        time.sleep(PAUSE_S)
    raise RuntimeError(f"no answer after {TRIES} tries; the last: {status} {body[:200]!r}")


class Load:
    """Clients that embed the same images over and over, and compare."""

    def __init__(self, port: int, expected: list[list[float]]) -> None:
        self.answered = self.wrong = 0
        self.refused: Counter[int] = Counter()
        self.lost: list[str] = []
        self._port, self._expected = port, expected
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _client(self, number: int) -> None:
        while not self._stop.is_set():
            number = (number + 1) % IMAGES
            try:
                found, refused = vector(self._port, photo(number))
            except RuntimeError as error:
                self.lost.append(str(error))
                continue
            far = max(abs(a - b) for a, b in zip(found, self._expected[number], strict=True)) > 1e-4
            with self._lock:
                self.answered += 1
                self.refused.update(refused)
                self.wrong += far

    def end(self) -> None:
        """No more requests; those under way are finished."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def replicas() -> list[psutil.Process]:
    """Processes that hold a replica: parents of a device process, below this one."""
    return [parent for one in devices() if (parent := one.parent()) is not None]


def devices() -> list[psutil.Process]:
    """Device processes that run on this drill's arena."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environ = process.info["environ"] or {}
        if "service.devices.worker" in (process.info["cmdline"] or []) and environ.get(MARK) == str(os.getpid()):
            found.append(process)
    return found


def until(true: Any, seconds: float, what: str) -> None:
    """Wait. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def cluster(model: str, count: int) -> Iterator[int]:
    """A local Ray with so many replicas; yields the proxy's port."""
    os.environ |= {"VIM_MODEL": model, "VIM_DEVICE": "cpu", "VIM_LOG_LEVEL": "warning", MARK: str(os.getpid())}
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray import serve

    from deploy.ray.app import Options, build

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=4, include_dashboard=False, _temp_dir=folder, _node_ip_address="127.0.0.1", log_to_driver=False
        )
        serve.start(http_options={"host": "127.0.0.1", "port": (port := free_port())})
        options = Options(cpus=1, gpus=0, min_replicas=count, max_replicas=count)
        serve.run(build(options), name="vision-mamba", route_prefix="/")
        try:
            yield port
        finally:
            serve.shutdown()
            ray.shutdown()


def drill(model: str) -> dict[str, Any]:
    """Two replicas under load; one is killed. What the clients and the process table saw."""
    with cluster(model, 2) as port:
        expected = [vector(port, photo(number))[0] for number in range(IMAGES)]
        until(lambda: len(devices()) == 2, 60, "two device processes")
        victim = replicas()[0]
        orphan = next(one for one in devices() if one.ppid() == victim.pid)
        load = Load(port, expected)
        time.sleep(2)
        before = load.answered
        os.kill(victim.pid, signal.SIGKILL)
        until(
            lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE, 10, "the device process's end"
        )
        until(lambda: len(devices()) == 2, 60, "a new replica")
        time.sleep(2)
        load.end()
    until(lambda: not devices(), 60, "the end of all device processes")
    seen = {"before": before, "answered": load.answered, "refused": dict(load.refused), "wrong": load.wrong}
    return seen | {"lost": load.lost, "orphans": len(devices())}


def cost(model: str, pairs: int) -> dict[str, float]:
    """Median milliseconds of a probe and of an image, by the proxy and by the plain server, in turn."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), model=model) as plain,
        cluster(model, 1) as port,
    ):
        ports = {"plain": urlsplit(plain.url).port or 0, "ray": port}
        times: dict[str, list[float]] = {f"{name} {what}": [] for name in ports for what in ("probe", "image")}
        for number in range(pairs + 3):
            for name, at in ports.items():
                for what, request in (("probe", ("GET", "/livez")), ("image", ("POST", "/v1/embed", photo(number)))):
                    start = time.perf_counter()
                    status, _ = ask(at, *request)
                    assert 200 == status, (name, what, status)
                    if number >= 3:
                        times[f"{name} {what}"].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(values), 2) for name, values in times.items()}


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cost", type=int, default=0, metavar="PAIRS")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    print(json.dumps(cost(options.model, options.cost) if options.cost else drill(options.model)))


if __name__ == "__main__":
    main()
