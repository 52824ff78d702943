"""Files whose pixels are corrected, or which are refused, and the error texts. `test_oracle` compares pixels."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import ImageTooComplex, UnsupportedImage
from service.images.decode import DecodeLimits, Decoder
from service.images.header import MAX_PACKED_BYTES
from service.images.inspect_file import inspect
from tests.service.images import oracle_tiff
from tests.service.images.image_files import encode, photo
from tests.service.images.oracle_files import HEIGHT, INSIDE, WIDTH, Values, deepened, gif_partial, picture, png
from tests.service.images.slow_files import chunk

LIMITS = DecodeLimits(max_pixels=100_000_000)


def run(data: bytes, mode: Literal["reference", "friendly"] = "friendly") -> Values:
    """The pixels of a file of WIDTH x HEIGHT, in its own size."""
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Decoder(Preprocess(32, mode=mode), LIMITS).decode(data, out)
    return out


def refusal(data: bytes) -> str:
    """Why the file is refused with 415."""
    with pytest.raises(UnsupportedImage) as caught:
        run(data)
    return caught.value.detail.partition(";")[0]


@pytest.mark.parametrize(
    ("kind", "layout", "says"),
    [
        ("grey, alpha", oracle_tiff.Layout(planar=True), "has grey and alpha in separate planes"),
        ("RGBA, alpha not named", oracle_tiff.Layout(planar=True), "has a fourth plane of unknown meaning"),
        ("four inks 8", oracle_tiff.Layout(), "has other inks than cyan, magenta, yellow and black"),
        ("float, 0 is white", oracle_tiff.Layout(), "has floating point values of which 0 is white"),
        ("grey 32, all bits", oracle_tiff.Layout(), "has 32-bit values above 2147483647"),
    ],
)
def test_a_tiff_that_would_be_shown_wrong_is_refused_by_name(kind: str, layout: oracle_tiff.Layout, says: str) -> None:
    """A TIFF that no decoder of the service reads right is refused, and the answer names the property."""
    (found,) = (one for one in oracle_tiff.KINDS if one.name == kind)
    compressed = replace(layout, compression=oracle_tiff.LZW)

    assert refusal(oracle_tiff.write(found, layout)) == f"the TIFF image {says}"
    assert refusal(oracle_tiff.write(found, compressed)) == f"the TIFF image {says}"


def test_uncompressed_colour_at_half_resolution() -> None:
    """A YCbCr TIFF without compression, with one colour for four pixels, is neither noise nor truncated."""
    luma = picture()[..., 0]
    blocks = luma.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).swapaxes(1, 2).reshape(-1, 4)
    pixels = np.concatenate([blocks, np.full((len(blocks), 2), (100, 180), np.uint8)], 1).tobytes()
    tags: dict[int, tuple[int, ...]] = {256: (WIDTH,), 257: (HEIGHT,), 258: (8, 8, 8), 259: (1,), 262: (6,), 277: (3,)}
    tags |= {273: (8,), 278: (HEIGHT,), 279: (len(pixels),), 530: (2, 2)}
    shown = luma[..., None] + np.array([1.402 * 52, 0.344136 * 28 - 0.714136 * 52, -1.772 * 28])

    assert abs(run(oracle_tiff.assemble("<", pixels, tags)) - np.clip(shown, 0, 255)).max() <= 2


@pytest.mark.parametrize("target", [20, 1 << 30])
def test_metadata_of_a_tiff_that_lies_elsewhere_is_ignored(target: int) -> None:
    """A pointer to EXIF that leads into the pixels, where a directory would have 65,535 tags, is ignored."""
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    pixels = grey.tobytes()
    tags = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 1, 277: 1, 278: HEIGHT, 273: 8, 279: len(pixels)}
    values: dict[int, tuple[int, ...]] = {tag: (value,) for tag, value in tags.items()}
    data = bytearray(oracle_tiff.assemble("<", pixels, values | {34665: (0,)}))
    at = data.index(struct.pack("<HHI", 34665, 3, 1))
    data[at : at + 12] = struct.pack("<HHII", 34665, 4, 1, target)

    assert (run(bytes(data)) == 255).all()


def test_a_png_for_ios_is_refused_by_name() -> None:
    """A CgBI chunk before the header is named; its bytes are not taken for a size."""
    data = encode(photo(), "PNG")
    cgbi = data[:8] + chunk(b"CgBI", b"\x50\x00\x20\x02") + data[8:]

    assert refusal(cgbi) == "a PNG image with a CgBI chunk, for iOS only, is not supported"
    assert refusal(data[:8] + chunk(b"tEXt", b"a\0b") + data[8:]) == "the PNG image does not begin with its header"


@pytest.mark.parametrize(
    ("bits", "colour", "interlaced", "fits"),
    [(8, 6, 0, True), (8, 6, 1, True), (16, 0, 1, True), (16, 4, 0, True), (16, 2, 0, False), (16, 6, 0, False)],
)
def test_the_bytes_of_a_png_are_limited(bits: int, colour: int, interlaced: int, fits: bool) -> None:
    """100 megapixels pass with 8 bits in every channel or 16 bits in grey, and not with 16 bits in colour."""
    header = struct.pack(">IIBBBBB", 9990, 9990, bits, colour, 0, 0, interlaced)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    found = inspect("PNG", data)

    assert (found.pixels * found.packed_bytes <= MAX_PACKED_BYTES) == fits
    with pytest.raises(UnsupportedImage if fits else ImageTooComplex) as caught:
        run(data)
    assert fits or "9990 x 9990 pixels unpacks to" in caught.value.detail


def test_nothing_around_a_first_frame_is_white() -> None:
    """The area around a first frame smaller than the canvas is white; in reference mode it has Pillow's pixels."""
    left, top, right, bottom = INSIDE
    data = gif_partial("P")
    with Image.open(io.BytesIO(data)) as image:
        by_pillow = np.asarray(image.convert("RGB"))
    shown = run(data)

    np.testing.assert_array_equal(shown[top:bottom, left:right], by_pillow[top:bottom, left:right])
    assert (shown[:top] == 255).all()
    assert (shown[:, right:] == 255).all()
    np.testing.assert_array_equal(run(data, "reference"), by_pillow)
    assert inspect("GIF", data).bytes_per_pixel > inspect("GIF", encode(photo("P"), "GIF")).bytes_per_pixel


def partial_png(values: Values, bits: int, colour: int) -> bytes:
    """An animated PNG whose first frame is smaller than its canvas; the standard forbids it, programs write it."""
    left, top, right, bottom = INSIDE
    frame = struct.pack(">IIIIIHHBB", 0, right - left, bottom - top, left, top, 30, 1, 0, 0)
    data = png(values[top:bottom, left:right], bits, colour)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0))
    control = chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", frame)
    return data[:8] + header + control + data[33:]


def test_nothing_around_the_first_frame_of_a_png_is_white() -> None:
    """The same holds for an animated PNG; with 16 bits of grey it is refused."""
    left, top, right, bottom = INSIDE
    rgb = picture()[..., :3]
    shown = run(partial_png(rgb, 8, 2))

    np.testing.assert_array_equal(shown[top:bottom, left:right], rgb[top:bottom, left:right])
    assert (shown[:top] == 255).all()
    assert (shown[:, right:] == 255).all()
    assert "smaller than the image, and 16 bits" in refusal(partial_png(deepened(rgb[..., :1]), 16, 0))


def test_values_of_white_that_are_zero_stay_so_after_turning() -> None:
    """Inverted 16-bit values with an orientation come out inverted once and turned once."""
    (kind,) = (one for one in oracle_tiff.KINDS if one.name == "grey 16, 0 is white")
    data = oracle_tiff.write(kind, oracle_tiff.Layout(orientation=3))

    assert abs(run(data) - kind.shown(kind.samples)[::-1, ::-1]).max() <= 2
