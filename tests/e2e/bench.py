"""Shared by the scenarios of `make chaos`: models, servers, the server's log, and its resource usage."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.load import Ledger, Load, undisturbed
from tests.e2e.mixture import mixture
from tests.e2e.server import Server, serving
from tests.tiny import write_tiny_model

CLIENTS = 16
POOL = (os.cpu_count() or 1) + 4  # most threads of asyncio's default executor
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Line:
    """One row of the table that is printed."""

    name: str
    held: bool
    says: str


@dataclass(frozen=True)
class Bench:
    """The resources of a scenario: a folder for logs, the models with their undisturbed answers, the length of long
    runs, and the number of repetitions.
    """

    directory: Path
    models: Mapping[str, Path | str]
    expected: Mapping[str, Mapping[str, Any]]
    minutes: float
    times: int

    @classmethod
    def prepare(cls, directory: Path, minutes: float, times: int) -> Bench:
        """A tiny model and the demo model, with the answers of undisturbed servers."""
        models: dict[str, Path | str] = {"tiny": write_tiny_model(directory / "tiny"), "demo": "demo"}
        expected = {name: _in_peace(directory / name, model) for name, model in models.items()}
        return cls(directory, models, expected, minutes, times)

    def server(
        self, name: str, model: str = "tiny", faults: Mapping[str, object] | None = None, **settings: Any
    ) -> AbstractContextManager[Server]:
        """A ready server with its own log."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return serving(folder, faults=faults, model=self.models[model], **settings)

    def load(self, server: Server, model: str = "tiny") -> Load:
        """Sixteen clients with mixed requests."""
        return Load(server.url, CLIENTS, dict(self.expected[model]))


def _in_peace(directory: Path, model: Path | str) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    with serving(directory, model=model) as server:
        return asyncio.run(undisturbed(server.url, mixture()))


@dataclass(frozen=True)
class Vitals:
    """Memory, descriptors and threads of the HTTP process, and its device processes."""

    megabytes: float
    descriptors: int
    threads: int
    devices: int

    @classmethod
    def of(cls, server: Server) -> Vitals:
        """The usage of the server at this moment."""
        process = psutil.Process(server.process.pid)
        memory = process.memory_info().rss / 1e6
        return cls(memory, process.num_fds(), process.num_threads(), len(server.children()))

    def grown(self, before: Vitals) -> str:
        """The change since then, as text for people."""
        return (
            f"memory {before.megabytes:.0f} -> {self.megabytes:.0f} MB, descriptors {before.descriptors} -> "
            f"{self.descriptors}, threads {before.threads} -> {self.threads}, device processes {before.devices} -> "
            f"{self.devices}"
        )

    def steady(self, before: Vitals, megabytes: float) -> bool:
        """Whether nothing leaked; descriptors and threads may grow by the clients' connections and the thread pool."""
        few = self.descriptors <= before.descriptors + CLIENTS and self.threads <= before.threads + POOL
        return self.devices == before.devices and few and self.megabytes - before.megabytes < megabytes


@dataclass(frozen=True)
class Recovery:
    """One fault: when it struck, when it was noticed, when the replacement served, and its logged start-up time."""

    struck: float
    noticed: float
    served: float
    start_up_s: float

    @property
    def seconds(self) -> float:
        """From the fault to a device process that serves."""
        return self.served - self.struck

    @property
    def excess_s(self) -> float:
        """The recovery time without the start-up itself."""
        return self.seconds - self.start_up_s


async def strike(server: Server, load: Load, number: signal.Signals) -> Recovery:
    """Send a signal to the device process; wait until its replacement has answered a request."""
    lost, up = len(_lines(server, "is lost")), len(_lines(server, "is up after"))
    struck = time.time()
    os.kill(server.device_pid(), number)
    await _until(lambda: len(_lines(server, "is up after")) > up)
    answered = load.ledger.good
    await _until(lambda: load.ledger.good > answered)
    noticed, _ = _lines(server, "is lost")[lost]
    served, says = _lines(server, "is up after")[up]
    return Recovery(struck, noticed, served, float(says.split("after ")[1].split(" s")[0]))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


def _lines(server: Server, words: str) -> list[tuple[float, str]]:
    """Time and message of the log lines with these words."""
    found = [json.loads(line) for line in server.log.splitlines() if words in line]
    return [(datetime.fromisoformat(line["time"]).timestamp(), line["message"]) for line in found]


def counted(ledger: Ledger) -> str:
    """The counts of requests and answers for the table, with the errors, if any."""
    complaints = f" ({ledger.complaints})" if ledger.complaints else ""
    return f"{ledger}{complaints}; longest without an answer for anybody {ledger.gap_s:.1f} s"
