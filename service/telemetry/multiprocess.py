"""What a page of metrics is made from: one process, or several that count for it in the library's own way, by files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, values
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Shared:
    """Several processes of one service that count together, each in files of its own in this directory.

    The files outlive a process that ends, and one of the same name goes on counting where it was; only its gauges are
    to be taken off before (`buried`).
    """

    directory: str
    name: str  # of this process; without "_"

    def use(self) -> None:
        """From now on the library keeps this process's numbers there: before the first metric is made."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self.directory
        values.ValueClass = values.MultiProcessValue(lambda: self.name)  # type: ignore[no-untyped-call]

    def registry(self) -> CollectorRegistry:
        """The sum of all processes."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.directory)  # type: ignore[no-untyped-call]
        return registry

    def buried(self, name: str) -> None:
        """The process of this name has ended: what it counted stays, what it held is gone."""
        mark_process_dead(name, self.directory)  # type: ignore[no-untyped-call]


def page(own: CollectorRegistry, shared: Shared | None) -> CollectorRegistry:
    """What is shown: the metrics of this process, or of all; and of the process itself, where there is one."""
    shown = shared.registry() if shared else own
    PlatformCollector(registry=shown)
    if not shared:
        ProcessCollector(registry=shown)
    return shown


class Page(Collector):
    """The registry without `_created`: the library adds such a series to every counter, and nothing reads them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """What is on the page."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
