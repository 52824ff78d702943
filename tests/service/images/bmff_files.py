"""HEIC and AVIF files for the tests, put together from the coded picture of another file; and the shared picture.

`tests/data/formats` holds small files of `picture()` that other programs wrote: HEIC by libheif 1.23 with x265 4.2,
JPEG XL by cjxl 0.7. In the two turned ones the picture is stored rotated, with a property for the rotation.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from service.images.inspect_bmff import Box, boxes
from tests.service.images.image_files import WRITTEN_ELSEWHERE

WIDTH, HEIGHT = 128, 96


class Coded(NamedTuple):
    """A coded picture: the type of its item, the box that configures the decoder, and the data."""

    kind: bytes
    configuration: bytes
    data: bytes


def picture() -> Image.Image:
    """Gradients, and a red rectangle at the top left, so that every turn shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 2, y * 2.6, 255 - x - y / 2], -1).clip(0, 255).astype(np.uint8)
    pixels[10:30, 10:40] = [255, 0, 0]
    return Image.fromarray(pixels)


def sample(name: str) -> bytes:
    """A file of `tests/data/formats`."""
    return (WRITTEN_ELSEWHERE / name).read_bytes()


def box(kind: bytes, *content: bytes) -> bytes:
    """A box."""
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full(kind: bytes, version: int, *content: bytes) -> bytes:
    """A box with a version."""
    return box(kind, bytes([version, 0, 0, 0]), *content)


def size(width: int, height: int) -> bytes:
    """The property that says the size of an item."""
    return full(b"ispe", 0, struct.pack(">II", width, height))


def code_points(primaries: int, transfer: int) -> bytes:
    """The property that says the colour space by code points."""
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, 6, 0x80))


def icc(profile: bytes) -> bytes:
    """The property that says the colour space by an ICC profile."""
    return box(b"colr", b"prof", profile)


def turned(quarters: int) -> bytes:
    """The property that turns an item anti-clockwise."""
    return box(b"irot", bytes([quarters]))


def coded(data: bytes) -> Coded:
    """The coded picture of a file with one item and no metadata."""
    found = {found.kind: found for found in _all(data, Box(b"", 0, len(data)))}
    kind, name = (b"hvc1", b"hvcC") if b"hvcC" in found else (b"av01", b"av1C")
    configuration, content = found[name], found[b"mdat"]
    return Coded(kind, box(name, data[configuration.start : configuration.end]), data[content.start : content.end])


def single(tile: Coded, *properties: bytes, side: tuple[int, int] = (WIDTH, HEIGHT), unused: bytes = b"") -> bytes:
    """A file of one picture with these properties; `unused` is a property that belongs to no item."""
    own = (tile.configuration, size(*side), *properties)
    return _file(tile, [Item(tile.kind, range(len(own)))], (*own, unused or box(b"free")))


def grid(
    tile: Coded,
    rows: int,
    columns: int,
    *properties: bytes,
    tile_side: tuple[int, int] = (WIDTH, HEIGHT),
    side: tuple[int, int] | None = None,
) -> bytes:
    """A file whose picture consists of `rows` times `columns` copies of one tile; `side` is what it claims."""
    width, height = side or (columns * tile_side[0], rows * tile_side[1])
    layout = bytes([0, 1, rows - 1, columns - 1]) + struct.pack(">II", width, height)
    own = (tile.configuration, size(*tile_side), size(width, height), *properties)
    tiles = [Item(tile.kind, range(2), is_hidden=True)] * (rows * columns)
    numbers = range(2, 2 + len(tiles))
    links = struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *numbers)
    return _file(tile, [Item(b"grid", range(2, len(own)), layout), *tiles], own, full(b"iref", 0, box(b"dimg", links)))


class Item(NamedTuple):
    """An item: its type, its properties, its data (none: the coded picture). The first item of a file is shown."""

    kind: bytes
    properties: range
    data: bytes = b""
    is_hidden: bool = False


def _file(tile: Coded, items: list[Item], properties: tuple[bytes, ...], references: bytes = b"") -> bytes:
    brand = b"heic" if tile.kind == b"hvc1" else b"avif"
    start = box(b"ftyp", brand, bytes(4), b"mif1", brand, b"miaf")
    entries = [
        box(b"infe", bytes([2, 0, 0, item.is_hidden]), struct.pack(">HH", number, 0), item.kind, b"\0")
        for number, item in enumerate(items, 1)
    ]
    essential = {index for index, one in enumerate(properties) if one[4:8] in (b"hvcC", b"av1C", b"irot")}
    links = [
        struct.pack(">HB", number, len(item.properties))
        + bytes(index + 1 + 0x80 * (index in essential) for index in item.properties)
        for number, item in enumerate(items, 1)
    ]
    data = tile.data + b"".join(item.data for item in items)

    def meta(data_at: int) -> bytes:
        places, at = [], data_at + len(tile.data)
        for number, item in enumerate(items, 1):
            found = (at, len(item.data)) if item.data else (data_at, len(tile.data))
            places.append(struct.pack(">HHHII", number, 0, 1, *found))
            at += len(item.data)
        return full(
            b"meta",
            0,
            full(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full(b"pitm", 0, struct.pack(">H", 1)),
            full(b"iinf", 0, struct.pack(">H", len(items)), *entries),
            references,
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, struct.pack(">I", len(items)), *links)),
            full(b"iloc", 0, b"\x44\x00", struct.pack(">H", len(items)), *places),
        )

    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", data)


def _all(data: bytes, outer: Box) -> list[Box]:
    found = list(boxes(data, outer.start, outer.end))
    inside = [one for one in found if one.kind in (b"meta", b"iprp", b"ipco")]
    return found + [
        deeper for one in inside for deeper in _all(data, one._replace(start=one.start + 4 * (one.kind == b"meta")))
    ]
