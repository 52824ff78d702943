"""What the HTTP processes use of the limits that they share, and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from service.jobs import RequestClass
from service.system.shared_counts import SharedCount, alone

ByClass = Mapping[RequestClass, SharedCount]
MODELS = 64  # most names of models; each has its own counts, by the number in `service.status.ModelId`


@dataclass(frozen=True, slots=True)
class Usage:
    """The counts of one HTTP process; the sum of each is that of all of them."""

    images: ByClass  # admitted and not yet answered
    body_bytes: ByClass  # of request bodies in memory
    images_of: Sequence[SharedCount]  # the images by model
    body_bytes_of: Sequence[SharedCount]  # the bytes by model
    decode_bytes: SharedCount  # reserved for decoding
    decode_since: SharedCount  # when a thread began to wait for memory (monotonic, ns); 0: none waits
    overdue: SharedCount  # 1 while every decode thread is busy for longer than a request may last
    beats: SharedCount  # grows while the event loop runs

    @classmethod
    def of(cls, counts: Sequence[SharedCount]) -> Usage:
        """Use these counts, as many as `NUMBERS`."""
        interactive, bulk, interactive_bytes, bulk_bytes, *others = counts
        by_model = others[:MODELS], others[MODELS : 2 * MODELS]
        images, body_bytes = _by_class(interactive, bulk), _by_class(interactive_bytes, bulk_bytes)
        return cls(images, body_bytes, *by_model, *others[2 * MODELS :])

    @classmethod
    def alone(cls) -> Usage:
        """The counts of a service with one HTTP process."""
        return cls.of(alone(NUMBERS))

    def clear(self) -> None:
        """Set the parts of this process to 0: it has ended."""
        others = self.decode_bytes, self.decode_since, self.overdue, self.beats
        by_model = *self.images_of, *self.body_bytes_of
        for count in (*self.images.values(), *self.body_bytes.values(), *by_model, *others):
            count.own[0] = 0


NUMBERS = len(fields(Usage)) - 4 + 2 * 2 + 2 * MODELS  # two fields have a count for each class, two for each model


def _by_class(interactive: SharedCount, bulk: SharedCount) -> ByClass:
    return {"interactive": interactive, "bulk": bulk}
