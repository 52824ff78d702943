"""Hostile and damaged files are refused with a reason that shows nothing of the service's internals."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import threading
import zlib
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import EmptyBody, ImageTooComplex, ServiceError, TooManyPixels, UnsupportedImage
from service.images.decode import DecodeLimits, Decoder, Pixels
from service.images.formats import sniff
from tests.service.images.image_files import BOMBS, FILES, boxed, encode, mutations, photo, png_header, tiff

SIZE = 40
LIMITS = DecodeLimits(max_pixels=1_000_000)
FRIENDLY = Preprocess(size=SIZE, mode="friendly")
ACCEPTED = "accepted formats: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG XL"


def slot() -> Pixels:
    """A slot that holds the value 7 before anything is written to it."""
    return np.full((SIZE, SIZE, 3), 7, np.uint8)


def run(data: bytes, limits: DecodeLimits = LIMITS) -> Pixels:
    """The pixels that `data` decodes to."""
    out = slot()
    Decoder(FRIENDLY, limits).decode(data, out)
    return out


def refusal(data: bytes, kind: type[ServiceError] = UnsupportedImage, limits: DecodeLimits = LIMITS) -> str:
    """Why `data` is refused; the slot must not be touched."""
    out = slot()
    with pytest.raises(kind) as caught:
        Decoder(FRIENDLY, limits).decode(data, out)
    assert (out == 7).all()
    return caught.value.detail


def test_no_bytes_is_an_empty_body() -> None:
    """An image of no bytes is reported as empty, not as damaged."""
    assert refusal(b"", EmptyBody) == "the image has no bytes"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<!-- drawn --><svg/>", "SVG"),
        (b"<!DOCTYPE svg PUBLIC><svg>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
)
def test_a_known_format_that_is_not_accepted_is_named(data: bytes, name: str) -> None:
    """A file of a known format that is not accepted is refused with its format and the accepted ones."""
    assert sniff(data) == name
    assert refusal(data) == f"{name} is not supported; {ACCEPTED}"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (boxed(b"heic", b"mif1", b"heic"), "HEIC"),
        (boxed(b"mif1", b"mif1", b"heic"), "HEIC"),
        (boxed(b"avif", b"mif1", b"miaf"), "AVIF"),
        (boxed(b"mif1", b"miaf", b"avif"), "AVIF"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_a_format_that_is_not_installed_is_named(data: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its decoder a format is refused, and not among the accepted ones."""
    monkeypatch.setattr("service.images.formats.ACCEPTED", ("JPEG", "PNG"))

    assert sniff(data) == name
    assert refusal(data) == f"{name} is not supported by this installation; accepted formats: JPEG, PNG"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"hello",
        b'{"images": []}',
        b"data:image/png;base64,iVBORw0KGgo=",
        b"<html><body>not found</body></html>",
        boxed(b"isom", b"mp42"),
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"8BPS\x00\x01",
        b"\x00\x00\x01\x00",
        b"P6 1 1 255\n\x00\x00\x00",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        bytes(range(256)),
    ],
)
def test_anything_else_is_no_known_image(data: bytes) -> None:
    """Other bytes are of no known format, even where Pillow could read them."""
    assert sniff(data) is None
    assert refusal(data) == f"the bytes are not an image of a known format; {ACCEPTED}"


@pytest.mark.parametrize(("form", "mode"), FILES)
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(form: str, mode: str, kept: float) -> None:
    """A truncated file is refused, unless all of its pixels are there."""
    data = encode(photo(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        whole = FRIENDLY(image)
    with contextlib.suppress(UnsupportedImage):
        np.testing.assert_array_equal(run(data[: int(len(data) * kept)]), whole)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
def test_a_truncated_file_is_called_truncated(form: str) -> None:
    """The message says that the file is truncated; the usual cause is an interrupted upload."""
    data = encode(photo().resize((400, 300)), form)

    assert refusal(data[: len(data) // 2]).endswith(f"image is truncated; {ACCEPTED}")


def test_a_png_bomb_is_refused_by_its_header() -> None:
    """900 million pixels in 100 kB are refused without using memory, and without reading past the header."""
    bomb = png_header(30_000, 30_000)
    before = psutil.Process().memory_info().rss
    detail = refusal(bomb, TooManyPixels, DecodeLimits(max_pixels=100_000_000))

    assert detail == refusal(bomb[:50], TooManyPixels, DecodeLimits(max_pixels=100_000_000))
    assert psutil.Process().memory_info().rss - before < 10_000_000
    assert detail == ("the image has 30000 x 30000 = 900000000 pixels; the limit is 100000000 (VIM_MAX_PIXELS)")


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_other_bombs_are_refused_by_their_header(bomb: Callable[[], bytes]) -> None:
    """In every format a file that claims too many pixels is refused without using memory."""
    data = bomb()
    before = psutil.Process().memory_info().rss
    detail = refusal(data, TooManyPixels, DecodeLimits(max_pixels=100_000_000))

    assert psutil.Process().memory_info().rss - before < 10_000_000
    assert "the limit is 100000000 (VIM_MAX_PIXELS)" in detail


def test_the_pixel_limit_is_inclusive() -> None:
    """An image of 3,072 pixels passes a limit of 3,072 and not one of 3,071."""
    data = encode(photo(), "PNG")

    assert run(data, DecodeLimits(max_pixels=3_072)).shape == (SIZE, SIZE, 3)
    assert "3072" in refusal(data, TooManyPixels, DecodeLimits(max_pixels=3_071))


def test_a_large_image_within_the_limit_passes_without_pillows_warning() -> None:
    """Pillow's own limit is off, which would warn from 89 million pixels on."""
    large = encode(Image.new("1", (12_000, 8_000)), "PNG")

    assert run(large, DecodeLimits(max_pixels=100_000_000)).max() == 0


RAISED = [
    OSError("cannot identify image file <_io.BytesIO object at 0x7fb67e0c4720>"),
    OSError("broken data stream when reading image file /usr/lib/python3"),
    SyntaxError("broken PNG file (chunk b'secret')"),
    ValueError("bad"),
    struct.error("unpack requires a buffer of 4 bytes"),
    EOFError("no more images in GIF file"),
    IndexError("index out of range"),
    KeyError(b"secret"),
    OverflowError("too large"),
    ZeroDivisionError("division by zero"),
    Image.DecompressionBombError("exceeds limit"),
    MemoryError(),
    zlib.error("Error -3 while decompressing data"),
    TypeError("Missing dimensions"),
    NotImplementedError("mode"),
    RecursionError("depth"),
    AttributeError("'NoneType' object has no attribute"),
    AssertionError(),
]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_whatever_pillow_raises_becomes_a_plain_refusal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows no path, address or byte of the file, and no traceback of it keeps the image alive."""

    def fail(*_: object, **__: object) -> None:
        raise error

    data = encode(photo(), "PNG")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnsupportedImage) as caught:
        Decoder(FRIENDLY, LIMITS).decode(data, slot())
    reason = "truncated" if isinstance(error, EOFError) else "damaged or of an unsupported kind"

    assert caught.value.detail == f"the PNG image is {reason}; {ACCEPTED}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_failure_after_decoding_is_refused_but_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error in preprocessing is refused, and its traceback is logged since it may be a bug of the service."""

    class Failing(Preprocess):
        def __call__(self, image: Image.Image) -> Pixels:
            raise ValueError("mode")

    with pytest.raises(UnsupportedImage), caplog.at_level(logging.WARNING):
        Decoder(Failing(SIZE), LIMITS).decode(encode(photo(), "PNG"), slot())

    assert "cannot be preprocessed" in caplog.text
    assert "ValueError: mode" in caplog.text


def test_a_refused_image_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A refused image adds no line to the log besides the request's own."""
    with caplog.at_level(logging.INFO):
        refusal(encode(photo(), "PNG")[:100])

    assert caplog.text == ""


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Damaged TIFF files print nothing, though libtiff by default prints a line per damaged row to stderr."""
    data = bytearray(encode(photo("1").resize((400, 300)), "TIFF", compression="group4"))
    for at in range(40, len(data) - 200, 7):
        data[at] ^= 0x5A
    with contextlib.suppress(UnsupportedImage):
        run(bytes(data))

    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_pillows_warnings_are_silent_in_every_thread() -> None:
    """No thread shows Pillow's warnings, which quote what a client sent."""
    data = tiff({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: -1, 279: 64, 34665: 1 << 30}, bytes(64))
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(io.BytesIO(data)) as image:
        image.getexif().get_ifd(34665)
    shapes: list[object] = []

    def work() -> None:
        shapes.extend(run(data).shape for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert shapes == [(SIZE, SIZE, 3)] * 20


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_decode_or_are_refused(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged file gives pixels or a ServiceError, prints nothing, and does not change the next image."""
    good = encode(photo(), "PNG")
    expected = run(good)
    for data in mutations(seed, 300):
        with contextlib.suppress(UnsupportedImage, TooManyPixels, ImageTooComplex):
            run(data)

    np.testing.assert_array_equal(run(good), expected)
    assert capfd.readouterr().err == ""
