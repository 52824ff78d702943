"""The counts that the HTTP processes and their parent share, in one memory file."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.oip.statistics import AllStatistics, numbers
from service.devices import usage
from service.devices.usage import Usage
from service.settings import Settings
from service.system import shared_counts


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts as one HTTP process sees them."""

    usage: Usage
    statistics: AllStatistics  # of the Open Inference Protocol


def memory(settings: Settings) -> int:
    """Make the memory file; returns its descriptor."""
    return shared_counts.memory(settings.http_workers, _numbers(settings))


def mapped(settings: Settings, descriptor: int, number: int) -> Counts:
    """The counts in that file, for the HTTP process with this number."""
    counts = shared_counts.mapped(descriptor, settings.http_workers, _numbers(settings), number)
    usage_counts = Usage.of(counts[: usage.NUMBERS])
    return Counts(usage_counts, AllStatistics(settings.queue_images, counts, usage.NUMBERS))


def _numbers(settings: Settings) -> int:
    return usage.NUMBERS + numbers(settings.queue_images)
