"""The registries behind a page of metrics: of one process, or of several that count together in files."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, values
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector


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
    """A registry without the `_created` series that the library adds to every counter; nothing reads them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """The families of the registry."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
