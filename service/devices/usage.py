"""What the HTTP processes use of the limits that they share, and their state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from service.jobs import RequestClass
from service.system.shared_counts import SharedCount, alone

ByClass = Mapping[RequestClass, SharedCount]


@dataclass(frozen=True, slots=True)
class Usage:
    """The counts of one HTTP process; the sum of each is that of all of them."""

    images: ByClass  # admitted and not yet answered
    body_bytes: ByClass  # of request bodies in memory
    decode_bytes: SharedCount  # reserved for decoding
    decode_since: SharedCount  # when a thread began to wait for memory (monotonic, ns); 0: none waits
    overdue: SharedCount  # 1 while every decode thread is busy for longer than a request may last
    beats: SharedCount  # grows while the event loop runs

    @classmethod
    def of(cls, counts: list[SharedCount]) -> Usage:
        """Use these counts, as many as `NUMBERS`."""
        interactive, bulk, interactive_bytes, bulk_bytes, *others = counts
        return cls(_by_class(interactive, bulk), _by_class(interactive_bytes, bulk_bytes), *others)

    @classmethod
    def alone(cls) -> Usage:
        """The counts of a service with one HTTP process."""
        return cls.of(alone(NUMBERS))

    def clear(self) -> None:
        """Set the parts of this process to 0: it has ended."""
        others = self.decode_bytes, self.decode_since, self.overdue, self.beats
        for count in (*self.images.values(), *self.body_bytes.values(), *others):
            count.own[0] = 0


NUMBERS = len(fields(Usage)) + 2  # two fields have a count for each class


def _by_class(interactive: SharedCount, bulk: SharedCount) -> ByClass:
    return {"interactive": interactive, "bulk": bulk}
