"""Is a file a plain JPEG so small that it may be decoded on the event loop? Read from its header.

Where others wait, one is small that takes no longer than handing it to a thread does. For an image that is alone in
the service a thread only costs, a millisecond when all caches are cold, and so a larger one is small as well.

Only one of a single scan, in colour or grey. Whatever is not surely so is not small: whoever decodes it then says what
it is. Looking takes some microseconds, whatever the bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.images import inspect_jpeg
from service.images.header import Shape


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a small file may have."""

    bytes: int
    pixels: int


AMONG_OTHERS = Bound(32_768, 102_400)  # 0.4 ms on one core where both are half used up
ALONE = Bound(262_144, 800_000)  # 4 ms, for which whoever comes meanwhile has to wait
# A line of pixels would be resized to a line of thousands, most of which is cut off.
MOST_ASPECT = 8
MOST_SEGMENTS = 32

_START = b"\xff\xd8"


def measured(data: bytes, most: Bound = AMONG_OTHERS) -> Shape | None:
    """The shape of such a file; None for all others."""
    if len(data) > most.bytes or not data.startswith(_START):
        return None
    shape = inspect_jpeg.one_scan(data, MOST_SEGMENTS)
    return shape if shape is not None and _is_small(shape, most) else None


def _is_small(shape: Shape, most: Bound) -> bool:
    sides = shape.width, shape.height
    return 0 < shape.pixels <= most.pixels and max(sides) <= MOST_ASPECT * min(sides) and shape.plain in (1, 3)
