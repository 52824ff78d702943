"""The header of AVIF and HEIC files: size and colour space, without decoding."""

from __future__ import annotations

import struct

import pytest

from service.errors import ImageTooComplex, UnsupportedImage
from service.images.header import Cicp
from service.images.inspect_bmff import boxes, inspect
from tests.service.images.bmff_files import (
    HEIGHT,
    WIDTH,
    box,
    code_points,
    coded,
    full,
    grid,
    icc,
    picture,
    sample,
    single,
    size,
)
from tests.service.images.image_files import encode

TILE = coded(sample("plain.heic"))
START = box(b"ftyp", b"heic", bytes(4), b"mif1")


def test_the_size_of_files_that_programs_write() -> None:
    """The size of real files is that of the picture before it is rotated."""
    assert [(inspect("HEIC", sample(f"{name}.heic")).width) for name in ("plain", "turned", "alpha")] == 3 * [WIDTH]
    assert inspect("AVIF", encode(picture(), "AVIF")).height == HEIGHT


def test_the_size_of_a_grid_is_that_of_the_whole() -> None:
    """The size of a grid is that of the whole picture, not of a tile."""
    header = inspect("HEIC", grid(TILE, 3, 5))

    assert (header.width, header.height) == (5 * WIDTH, 3 * HEIGHT)


def test_the_size_of_an_image_sequence() -> None:
    """The size of an image sequence is read from a track."""
    entry = box(b"av01", bytes(24), struct.pack(">HH", 640, 480), bytes(50))
    track = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", full(b"stsd", 0, struct.pack(">I", 1), entry)))))

    assert inspect("AVIF", START + box(b"moov", track)).pixels == 640 * 480


@pytest.mark.parametrize(
    ("properties", "cicp"),
    [
        ((), None),
        ((code_points(12, 16),), Cicp(12, 16)),
        ((code_points(12, 16), icc(b"profile")), None),
        ((icc(b"profile"),), None),
    ],
)
def test_code_points_count_without_a_profile(properties: tuple[bytes, ...], cicp: Cicp | None) -> None:
    """Code points are used only if there is no ICC profile, which is more exact."""
    assert inspect("HEIC", single(TILE, *properties)).cicp == cicp
    assert inspect("HEIC", grid(TILE, 2, 2, *properties)).cicp == cicp


def test_code_points_of_another_item_do_not_count() -> None:
    """Code points of items other than the shown one are ignored."""
    assert inspect("HEIC", single(TILE, unused=code_points(12, 16))).cicp is None


def test_a_file_without_a_size_is_refused() -> None:
    """A file without a size is refused, because its memory is not known."""
    with pytest.raises(UnsupportedImage, match="does not contain its size"):
        inspect("HEIC", START + box(b"mdat", bytes(100)))


def test_too_many_boxes_are_refused() -> None:
    """A file with too many boxes is refused, because decoders read all of them."""
    with pytest.raises(ImageTooComplex, match="more than 65536 boxes"):
        inspect("HEIC", START + 70_000 * box(b"free"))


def test_boxes_in_boxes_take_no_stack() -> None:
    """Nested boxes are read in a loop, up to the same number."""
    nested = size(8, 8)
    for _ in range(2000):
        nested = box(b"ipco", nested)

    assert inspect("HEIC", START + nested).pixels == 64


@pytest.mark.parametrize("cut", [2, 9, 30])
def test_a_cut_property_is_no_error_of_the_service(cut: int) -> None:
    """A file that ends within a box is refused, by struct.error or for its size."""
    data = single(TILE)
    at = data.index(b"ispe")

    with pytest.raises((UnsupportedImage, struct.error)):
        inspect("HEIC", data[: at + cut - 10])


def test_sizes_of_boxes() -> None:
    """A size may have 64 bits, or mean the rest of the file; a box that ends outside is not read."""
    large = struct.pack(">I4sQ", 1, b"wide", 20) + b"1234"
    rest = struct.pack(">I4s", 0, b"rest") + b"12345"
    outside = struct.pack(">I4s", 100, b"none") + b"1"

    found = [(one.kind, one.end - one.start) for one in boxes(large + rest, 0, len(large + rest))]

    assert found == [(b"wide", 4), (b"rest", 5)]
    assert [one.kind for one in boxes(large + outside, 0, len(large + outside))] == [b"wide"]
    assert list(boxes(struct.pack(">I4s", 4, b"tiny"), 0, 8)) == []
