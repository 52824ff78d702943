"""The registries behind a page of metrics: of one process, or of several that count together in files."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, values
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.errors import SettingsError

MEMORY = "/dev/shm"
PREFIX = "vim-metrics-"
BYTES_OF_A_PROCESS, FEW_MODELS = 1 << 20, 8  # its counters, with this many models
BYTES_OF_A_MODEL = 100_000  # those of each further model, in each process
STALE_S = 60.0  # an unused directory is removed when it is older


@dataclass(frozen=True, slots=True)
class MultiprocessDirectory:
    """A directory in which each process of one service keeps its numbers, in files of its own.

    The files outlive their process. A new process with the same name continues the counters; the gauges of the old one
    must be removed first (`mark_dead`).
    """

    directory: str
    name: str  # of this process; without "_"

    def use(self) -> None:
        """Make the library keep this process's numbers there. Call it before the first metric is created."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self.directory
        values.ValueClass = values.MultiProcessValue(functools.partial(str, self.name))  # type: ignore[no-untyped-call]

    def registry(self) -> CollectorRegistry:
        """A registry that sums up all processes."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.directory)  # type: ignore[no-untyped-call]
        return registry

    def mark_dead(self, name: str) -> None:
        """Note that the process `name` has ended: its counters stay, its gauges are removed."""
        mark_process_dead(name, self.directory)  # type: ignore[no-untyped-call]


def exposed_registry(own: CollectorRegistry, directory: MultiprocessDirectory | None) -> CollectorRegistry:
    """The registry that /metrics shows: of this process, with its CPU and memory, or of all processes."""
    registry = directory.registry() if directory else own
    PlatformCollector(registry=registry)
    if not directory:
        ProcessCollector(registry=registry)
    return registry


class WithoutCreated(Collector):
    """A registry without the `_created` series that the library adds to every counter; they are not used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """The families of the registry."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


@contextlib.contextmanager
def shared_directory(processes: int = 1, models: int = 1) -> Iterator[str]:
    """A new directory for the files of several processes, in memory if there is room; removed afterwards.

    Raises SettingsError where no file can be written.
    """
    place = _place(processes * (BYTES_OF_A_PROCESS + max(0, models - FEW_MODELS) * BYTES_OF_A_MODEL))
    _sweep(Path(place))
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True) as directory:
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
        os.close(lock)


def _place(needed: int) -> str:
    """Find a folder with enough space: a write to a mapped file on a full file system ends the process (SIGBUS)."""
    if os.access(MEMORY, os.W_OK) and _room(MEMORY) >= needed:
        return MEMORY
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SettingsError(f"VIM_HTTP_WORKERS needs a place for small files; TMPDIR may name one: {error}") from None
    if _room(place) < needed:
        raise SettingsError(
            f"VIM_HTTP_WORKERS needs {needed >> 20} MiB for counters; {MEMORY} and {place} have less: "
            "enlarge one of them, or name another folder with TMPDIR"
        )
    return place


def _room(place: str) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _sweep(place: Path) -> None:
    """Remove directories of services that were killed: their locks are free."""
    for left in place.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # in use, or another user's
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - left.stat().st_mtime > STALE_S:
                    shutil.rmtree(left)
            finally:
                os.close(lock)
