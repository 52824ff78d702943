"""Read the boxes of an ISO base media file, AVIF or HEIC, without decoding it: its size and its colour space.

Sources: ISO/IEC 14496-12 (boxes, sample entries) and 23008-12 (`ispe`, `colr` and the other properties of an item).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from service.errors import ImageTooComplex
from service.images.formats import unsupported
from service.images.header import MAX_PARTS, Cicp, Header

# Bytes for each pixel. At most 12.4 (AVIF) and 11.8 (HEIC) were measured: grids, 4:4:4, 10 bits, alpha.
_BYTES_PER_PIXEL = {"AVIF": 13.0, "HEIC": 14.0}
# Boxes that contain boxes -> the number of bytes before the first of them.
_CONTAINERS = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": 8,
}


class Box(NamedTuple):
    """A box: its type, and where its content begins and ends."""

    kind: bytes
    start: int
    end: int


@dataclass(slots=True)
class _Found:
    """What the walk over the boxes has found so far."""

    width: int = 0
    height: int = 0
    primary: int = 0  # the item that is shown
    properties: list[Box] = field(default_factory=list)
    associations: Box | None = None

    def size(self, width: int, height: int) -> None:
        """Keep the largest picture: the others are tiles, thumbnails and alpha planes."""
        if width * height > self.width * self.height:
            self.width, self.height = width, height


def inspect(name: str, data: bytes) -> Header:
    """Read the largest size in the file, and the colour space unless there is an ICC profile.

    Raises ImageTooComplex, UnsupportedImage; struct.error where the file ends too early.
    """
    found = _Found()
    waiting, parts = [Box(b"", 0, len(data))], 0
    while waiting:
        outer = waiting.pop()
        for box in boxes(data, outer.start, outer.end):
            parts += 1
            if parts > MAX_PARTS:
                raise ImageTooComplex(f"the {name} image has more than {MAX_PARTS} boxes; save it again")
            if outer.kind == b"ipco":
                found.properties.append(box)
            if box.kind in _CONTAINERS:
                waiting.append(box._replace(start=box.start + _CONTAINERS[box.kind]))
            else:
                _read(data, box, found)
    if not found.width:
        raise unsupported(f"the {name} image does not contain its size")
    return Header(found.width, found.height, _BYTES_PER_PIXEL[name], cicp=_cicp(data, found))


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets, up to the first that ends outside. A size of 0 means up to the end."""
    while start + 8 <= end:
        (size,) = struct.unpack_from(">I", data, start)
        kind, content = data[start + 4 : start + 8], start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        stop = start + size if size else end
        if not content <= stop <= end:
            return
        yield Box(kind, content, stop)
        start = stop


def _read(data: bytes, box: Box, found: _Found) -> None:
    match box.kind:
        case b"ispe":
            found.size(*struct.unpack_from(">4xII", data, box.start))
        case b"av01" | b"hvc1" | b"hev1":  # of an image sequence
            found.size(*struct.unpack_from(">24xHH", data, box.start))
        case b"pitm":
            (found.primary,) = struct.unpack_from(">4xI" if data[box.start] else ">4xH", data, box.start)
        case b"ipma":
            found.associations = box


def _cicp(data: bytes, found: _Found) -> Cicp | None:
    """The colour space of the shown item; None if it has an ICC profile, or no `colr` box."""
    colours = [box for box in _properties(data, found) if box.kind == b"colr"]
    if any(data[box.start : box.start + 4] != b"nclx" for box in colours):
        return None
    return next((Cicp(*struct.unpack_from(">4xHH", data, box.start)) for box in colours), None)


def _properties(data: bytes, found: _Found) -> Iterator[Box]:
    """Yield the properties that `ipma` associates with the shown item."""
    if found.associations is None:
        return
    at = found.associations.start
    version, wide = data[at], data[at + 3] & 1
    entry, one = ">IB" if version else ">HB", ">H" if wide else ">B"
    (count,) = struct.unpack_from(">4xI", data, at)
    at += 8
    for _ in range(min(count, MAX_PARTS)):
        item, amount = struct.unpack_from(entry, data, at)
        at += struct.calcsize(entry)
        for _ in range(amount):
            (number,) = struct.unpack_from(one, data, at)
            at += struct.calcsize(one)
            index = (number & (0x7FFF if wide else 0x7F)) - 1
            if item == found.primary and 0 <= index < len(found.properties):
                yield found.properties[index]
