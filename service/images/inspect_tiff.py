"""Read the first directory of a TIFF file without decoding it.

A TIFF may store 16 x 16 pixels as one tile of 20,000 x 20,000, use the same bytes for every strip, or have one strip
per pixel. The directory shows this.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import ImageTooComplex
from service.images.header import MAX_PARTS, MAX_SCANS, Header

MAX_TAGS = 4096
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _BIT_ORDER, _SAMPLES = 256, 257, 258, 259, 266, 277
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PARTS = ((273, 279), (324, 325))  # offsets and sizes of strips, of tiles
_WANTED = {
    _WIDTH,
    _HEIGHT,
    _BITS,
    _COMPRESSION,
    _BIT_ORDER,
    _SAMPLES,
    _TILE_WIDTH,
    _TILE_HEIGHT,
    *_PARTS[0],
    *_PARTS[1],
}
_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # these tags hold unsigned integers
_JPEG = (6, 7)
# Frame headers of progressive or arithmetic-coded JPEG data, which a strip may hold.
_MULTI_SCAN_FRAME = re.compile(rb"\xff[\xc2\xc6\xc9\xca\xcb]")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the directories of one file are stored: byte order, and whether the file is a BigTIFF."""

    data: bytes
    order: str
    big: bool

    def directory(self, at: int) -> tuple[int, int]:
        """The number of entries of the directory at `at`, and the offset of the first one."""
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), self.data, at)
        if count > MAX_TAGS:
            raise _too_many("tags", MAX_TAGS)
        return int(count), at + (8 if self.big else 2)

    def entries(self, at: int) -> Iterator[tuple[int, int, int, int]]:
        """(tag, type, count, offset of the values) of each entry."""
        number, first = self.directory(at)
        step, head, room = (20, "HHQ", 8) if self.big else (12, "HHI", 4)
        for entry in range(first, first + number * step, step):
            tag, kind, count = struct.unpack_from(self.order + head, self.data, entry)
            inside = entry + step - room
            size = struct.calcsize("=" + _FORMATS.get(kind, "B")) * count
            yield tag, kind, count, inside if size <= room else self._offset(inside)

    def _offset(self, at: int) -> int:
        return int(struct.unpack_from(self.order + ("Q" if self.big else "I"), self.data, at)[0])

    def first(self) -> int:
        """The offset of the first directory."""
        return self._offset(8 if self.big else 4)

    def values(self, kind: int, count: int, at: int) -> tuple[int, ...]:
        """The numbers of an entry; empty where Pillow skips it: another type, or values past the end of the file."""
        form = _FORMATS.get(kind, "")
        if not form or at + struct.calcsize("=" + form) * count > len(self.data):
            return ()
        if count > MAX_PARTS:
            raise _too_many("strips or tiles", MAX_PARTS)
        return struct.unpack_from(f"{self.order}{count}{form}", self.data, at)


def inspect(data: bytes) -> Header:
    """The header of a TIFF's first page. Raises ImageTooComplex; struct.error where it ends too early."""
    layout = _Layout(data, "<" if data[:2] == b"II" else ">", 43 in data[2:4])
    found: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, at in layout.entries(layout.first()):
        if tag in _WANTED and tag not in found:  # of two, Pillow and libtiff take the first
            found[tag] = layout.values(kind, count, at)
    as_stored = found.get(_COMPRESSION, (1,)) == found.get(_BIT_ORDER, (1,)) == (1,)
    for offsets, counts in () if as_stored else _PARTS:  # libtiff copies only what it has to unpack or to reverse
        _check_parts(len(data), found.get(offsets, ()), found.get(counts, ()))
    return _header(data, found)


def _check_parts(size: int, offsets: tuple[int, ...], counts: tuple[int, ...]) -> None:
    """Refuse strips that overlap: each of them would be copied."""
    if sum(counts) <= 2 * size:
        return
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
        raise struct.error("a strip ends beyond the file")
    raise ImageTooComplex("the strips of the TIFF image together are larger than the file; save it again")


def _header(data: bytes, found: dict[int, tuple[int, ...]]) -> Header:
    """Decoders unpack whole tiles, so the size is rounded up to a multiple of the tile size."""

    def one(tag: int, default: int) -> int:
        return (found.get(tag) or (default,))[0]

    width, height = one(_WIDTH, 0), one(_HEIGHT, 0)
    bits, samples = one(_BITS, 1), one(_SAMPLES, 1)
    width, height = _round_up(width, one(_TILE_WIDTH, 1)), _round_up(height, one(_TILE_HEIGHT, 1))
    multi_scan = one(_COMPRESSION, 1) in _JPEG and _MULTI_SCAN_FRAME.search(data) is not None
    return Header(width, height, 4 + max(4, samples * bits / 8), 3 * MAX_SCANS if multi_scan else 1)


def _round_up(size: int, step: int) -> int:
    return -(-size // max(1, step)) * max(1, step)


def _too_many(what: str, most: int) -> ImageTooComplex:
    return ImageTooComplex(f"the TIFF image has more than {most} {what}; save it again with another program")
