"""The header of a file is read before it is decoded, and files are refused by their structure."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import ImageTooComplex, ServiceError, UnsupportedImage
from service.images.decode import DecodeLimits, Decoder
from service.images.formats import sniff
from service.images.header import MAX_PARTS, MAX_SCAN_PIXELS, MAX_SCANS
from service.images.inspect_file import MAX_RUN_BYTES, inspect
from service.images.inspect_jpeg import MAX_EXIF_BYTES, MAX_STRAY_BYTES, WINDOW
from tests.service.images import image_files, slow_files
from tests.service.images.image_files import FILES, encode, photo
from tests.service.images.slow_files import Build

SIZE = 40
LIMITS = DecodeLimits(max_pixels=100_000_000)


def run(data: bytes, limits: DecodeLimits = LIMITS) -> np.ndarray:
    """The pixels that `data` decodes to."""
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    Decoder(Preprocess(SIZE, mode="friendly"), limits).decode(data, out)
    return out


def refusal(data: bytes, kind: type[ServiceError] = ImageTooComplex, limits: DecodeLimits = LIMITS) -> str:
    """The text with which decoding `data` is refused."""
    with pytest.raises(kind) as caught:
        run(data, limits)
    return caught.value.detail


@pytest.mark.parametrize(("form", "mode"), FILES)
def test_the_size_is_what_pillow_finds(form: str, mode: str) -> None:
    """The header gives the size that Pillow finds, and at least the memory of Pillow's image."""
    data = encode(photo(mode), form)
    name = sniff(data)
    assert name is not None
    header = inspect(name, data)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        stored = image.width * image.height * (4 if len(image.getbands()) > 1 or image.mode in ("I", "F") else 1)

        assert image.size == (header.width, header.height)
        assert header.memory_bytes >= stored


@pytest.mark.parametrize(
    ("build", "most", "says"),
    [
        (slow_files.png_chunks, MAX_PARTS - 10, "PNG image has more than 65536 chunks"),
        (slow_files.webp_chunks, MAX_PARTS - 10, "WebP image has more than 65536 chunks"),
        (slow_files.jpeg_segments, MAX_PARTS - 20, "JPEG image has more than 65536 segments"),
        (slow_files.jpeg_stray, MAX_STRAY_BYTES, "JPEG image has more than 1024 stray bytes"),
        (slow_files.jpeg_exif, MAX_EXIF_BYTES // 65_535, "JPEG image has more than 1000000 bytes of EXIF"),
        (slow_files.jpeg_scans, MAX_SCANS, "JPEG image has more than 100 scans"),
        (slow_files.gif_blocks, MAX_PARTS - 10, "GIF image has more than 65536 blocks"),
        (slow_files.gif_stray, MAX_PARTS - 10, "GIF image has more than 65536 blocks"),
        (slow_files.bmp_runs, MAX_RUN_BYTES // 2 - 1000, "BMP image has more than 4000000 bytes"),
        (slow_files.tiff_strips, MAX_PARTS, "TIFF image has more than 65536 strips"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_of_too_many_parts_is_refused(build: Build, most: int, says: str) -> None:
    """A file of too many parts is refused; one just within the limit is decoded or refused for another reason."""
    assert says in refusal(build(most + most // 10 + 20))
    with contextlib.suppress(UnsupportedImage):  # a file of nothing but runs is damaged all the same
        run(build(most))


def test_scans_behind_a_false_end_are_counted() -> None:
    """A comment that holds FF D9 does not end the picture, neither for the limit nor for libjpeg."""
    assert run(slow_files.jpeg_hidden_scans(50)).std() == 0
    assert "100 scans" in refusal(slow_files.jpeg_hidden_scans(101))


def test_what_follows_the_end_of_a_jpeg_is_not_counted() -> None:
    """Data after the end of a JPEG, such as the depth maps of phones, is not counted."""
    tail = slow_files.jpeg_scans(90) * 3

    np.testing.assert_array_equal(run(encode(photo(), "JPEG")), run(encode(photo(), "JPEG") + tail))


def test_scans_count_by_their_pixels() -> None:
    """A small picture of 100 scans and a usual large progressive JPEG pass; a large picture of 100 scans does not."""
    assert run(slow_files.jpeg_scans(100)).shape == (SIZE, SIZE, 3)
    usual = inspect("JPEG", encode(Image.new("RGB", (64, 48)), "JPEG", progressive=True))
    many = slow_files.resized_jpeg(slow_files.jpeg_scans(100), 8000, 6250)

    assert usual.scans * 100_000_000 < MAX_SCAN_PIXELS
    assert "too many scans for 8000 x 6250 pixels" in refusal(many)


@pytest.mark.parametrize("frame", [0xC3, 0xC9, 0xCA])
def test_jpeg_processes_that_nobody_uses_are_refused(frame: int) -> None:
    """JPEG files with arithmetic coding or lossless coding are refused."""
    data = bytearray(encode(photo(), "JPEG"))
    data[data.index(b"\xff\xc0") + 1] = frame

    assert "arithmetic coding or without loss is not supported" in refusal(bytes(data), UnsupportedImage)


def test_memory_is_limited_before_decoding() -> None:
    """An image that needs too much memory is refused with its size, its need and the setting."""
    data = encode(photo(), "WEBP")
    detail = refusal(data, limits=DecodeLimits(max_pixels=1_000_000, max_bytes=40_000))

    assert "WebP image of 64 x 48 pixels takes up to 49728 bytes" in detail
    assert "40000 (VIM_MAX_DECODE_BYTES)" in detail
    assert run(data, DecodeLimits(max_pixels=1_000_000, max_bytes=49_728)).std() > 10


def test_thin_images_count_their_rows() -> None:
    """A PNG of 100 million rows of one pixel is refused: Pillow needs twelve bytes for each row."""
    data = image_files.png_header(1, 99_000_000)

    assert "takes up to 1584000000 bytes" in refusal(data)


def test_exif_of_a_megabyte_is_ignored() -> None:
    """EXIF of more than a megabyte is ignored, since Pillow would read its tags one by one."""
    exif = b"Exif\0\0" + slow_files.bigtiff_tags(60_000)
    data = encode(photo(), "PNG", exif=exif)

    np.testing.assert_array_equal(run(encode(photo(), "PNG")), run(data))


def test_a_gif_without_a_picture_is_refused() -> None:
    """A GIF that ends before its first picture is refused."""
    data = encode(photo("P"), "GIF")

    assert "holds no picture" in refusal(data[: slow_files.after_palette(data)] + b";", UnsupportedImage)


@pytest.mark.parametrize("before_border", [-1, 0, 1, 2])
def test_a_marker_is_found_wherever_a_window_of_the_search_ends(before_border: int) -> None:
    """A scan is found before, after and on the border of two windows of the search."""
    frame = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03" + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    scan = b"\xff\xda\x00\x0c\x03" + bytes(9)

    header = inspect("JPEG", b"\xff\xd8" + frame + scan + bytes(WINDOW - before_border) + scan + bytes(9))

    assert 2 * 3 == header.scans
