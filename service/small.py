"""Is a file a plain JPEG so small that decoding it takes less than handing it to a thread does? Read from its header.

Plain: one baseline scan of all components, and nothing that Pillow would have to interpret (EXIF, Adobe's colours,
several pictures), so that the decoder in `jpeg` needs no help. Whatever is not surely so is not small: whoever decodes
it then says what it is. Looking takes some microseconds, whatever the bytes are.
"""

from __future__ import annotations

import re

from service.shape import Shape

# 0.4 ms on one core where both are half used up.
MOST_BYTES, MOST_PIXELS = 32_768, 102_400
# A line of pixels would be resized to a line of thousands, most of which is cut off.
MOST_ASPECT = 8
MOST_SEGMENTS = 32

_START = b"\xff\xd8"
_FRAME, _SCAN, _PROFILE = 0xC0, 0xDA, 0xE2
_KNOWN = {_FRAME, _PROFILE, 0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # with tables, JFIF's header and comments
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in entropy-coded data: FF 00 is a byte, the others restart it
_END = b"\xff\xd9"


def measured(data: bytes) -> Shape | None:
    """The shape of such a file; None for all others."""
    if len(data) > MOST_BYTES or not data.startswith(_START):
        return None
    frame, at = b"", len(_START)
    for _ in range(MOST_SEGMENTS):
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF:
            return None
        kind, length = head[1], head[2] << 8 | head[3]
        if kind == _SCAN:
            return _shape(frame) if _is_last(data, at + 2 + length) and frame[5:6] == data[at + 4 : at + 5] else None
        if kind not in _KNOWN or (kind == _PROFILE and not data.startswith(b"ICC_PROFILE\0", at + 4)):
            return None
        if kind == _FRAME:
            if frame:
                return None
            frame = data[at + 4 : at + 2 + length]
        at += 2 + length
    return None


def _is_last(data: bytes, at: int) -> bool:
    """Does nothing follow the scan that begins here but the end of the picture?"""
    marker = _MARKER.search(data, at)
    return marker is not None and marker[0] == _END


def _shape(frame: bytes) -> Shape | None:
    """`frame` holds precision, height, width, number of components, and three bytes for each."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    small = 0 < width * height <= MOST_PIXELS and max(width, height) <= MOST_ASPECT * min(width, height)
    return Shape(width, height, 1 if frame[5] == 1 else 4, frame[5]) if small else None
