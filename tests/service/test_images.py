"""Encoded bytes to pixels in a slot: every accepted format and mode, and hostile files that must end as refusals."""

from __future__ import annotations

import io
import logging
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from model.preprocess import Preprocess
from service import images
from service.errors import EmptyBody, ServiceError, TooManyPixels, UnsupportedImage
from service.images import DecodeLimits, DecodeTimes, Pixels, decode, sniff

SIZE = 40
LIMITS = DecodeLimits(max_pixels=1_000_000)
FRIENDLY = Preprocess(size=SIZE, mode="friendly")
ACCEPTED = "accepted formats: JPEG, PNG, WebP, GIF, BMP, TIFF"


def slot() -> Pixels:
    """Where pixels go; 7 is what was there before."""
    return np.full((SIZE, SIZE, 3), 7, np.uint8)


def run(data: bytes, limits: DecodeLimits = LIMITS) -> Pixels:
    """The pixels that `data` decodes to."""
    out = slot()
    decode(data, out, FRIENDLY, limits)
    return out


def refusal(data: bytes, kind: type[ServiceError] = UnsupportedImage, limits: DecodeLimits = LIMITS) -> str:
    """Why `data` is refused; the slot must not be touched."""
    out = slot()
    with pytest.raises(kind) as caught:
        decode(data, out, FRIENDLY, limits)
    assert (out == 7).all()
    return caught.value.detail


def photo(mode: str = "RGB") -> Image.Image:
    """A smooth picture with something in every channel."""
    grey = Image.radial_gradient("L").resize((64, 48))
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey.point(lambda v: 255 - v)])
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey, np.uint16) * 257)
    return colour.convert(mode)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def tiff(tags: dict[int, int], pixels: bytes) -> bytes:
    """A little-endian TIFF of LONG tags; a value of -1 stands for the pixels' offset."""
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, offset if value == -1 else value) for tag, value in sorted(tags.items())
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels


MODES = {
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "MPO": ["RGB"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"],
}
FILES = [(form, mode) for form, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("form", "mode"), FILES)
def test_every_format_and_mode_gives_the_picture(form: str, mode: str) -> None:
    """What arrives is what preprocessing makes of the same image opened by hand."""
    data = encode(photo(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        expected = FRIENDLY(image)

    np.testing.assert_array_equal(run(data), expected)
    assert expected.std() > 10


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"])
def test_tiff_compressions(compression: str) -> None:
    """Those that Pillow reads through libtiff too."""
    source = photo("1" if compression == "group4" else "RGB")
    data = encode(source, "TIFF", compression=compression)
    difference = run(data).astype(int) - FRIENDLY(source)

    assert abs(difference).mean() < 5


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF", "MPO"])
def test_only_the_first_frame_counts(form: str) -> None:
    """Animations, pages and stereo pairs."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])

    np.testing.assert_allclose(run(data).mean(axis=(0, 1)), [255, 0, 0], atol=3)


def test_a_jpeg_is_decoded_whole() -> None:
    """No draft: shrinking inside the decoder would change the pixels."""
    large = photo().resize((800, 600))
    data = encode(large, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = FRIENDLY(image)

    np.testing.assert_array_equal(run(data), expected)


def test_the_times_of_both_stages_are_told() -> None:
    """They go to the metrics and to Server-Timing."""

    def slow(image: Image.Image) -> Pixels:
        time.sleep(0.02)
        return FRIENDLY(image)

    times = decode(encode(photo(), "PNG"), slot(), slow, LIMITS)

    assert isinstance(times, DecodeTimes)
    assert times.decode_s > 0
    assert times.preprocess_s >= 0.02


def test_a_strided_slot_is_filled() -> None:
    """The arena may hand out any view."""
    arena = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    decode(encode(photo(), "PNG"), arena[1], FRIENDLY, LIMITS)

    assert arena[0].max() == 0
    np.testing.assert_array_equal(arena[1], FRIENDLY(photo()))


def test_no_bytes_is_an_empty_body() -> None:
    """Not a damaged image."""
    assert refusal(b"", EmptyBody) == "the image has no bytes"


def boxed(*brands: bytes) -> bytes:
    """The first box of an ISO media file."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 4) + body + bytes(100)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (boxed(b"heic", b"mif1", b"heic"), "HEIC"),
        (boxed(b"mif1", b"mif1", b"heic"), "HEIC"),
        (boxed(b"avif", b"mif1", b"miaf"), "AVIF"),
        (boxed(b"mif1", b"miaf", b"avif"), "AVIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<!-- drawn --><svg/>", "SVG"),
        (b"<!DOCTYPE svg PUBLIC><svg>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
)
def test_a_known_format_that_is_not_accepted_is_named(data: bytes, name: str) -> None:
    """So is what to convert it to."""
    assert sniff(data) == name
    assert refusal(data) == f"{name} is not supported; {ACCEPTED}"


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
    """Also formats that Pillow could read: the list of accepted ones is ours."""
    assert sniff(data) is None
    assert refusal(data) == f"the bytes are not an image of a known format; {ACCEPTED}"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_sniffing_tells_the_format_whatever_the_name(form: str) -> None:
    """By content alone."""
    name = sniff(encode(photo(), form))

    assert name is not None
    assert name.upper() == form


@pytest.mark.parametrize(("form", "mode"), FILES)
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(form: str, mode: str, kept: float) -> None:
    """Half a picture is not guessed at; a file may end early only where its pixels are complete."""
    data = encode(photo(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        whole = FRIENDLY(image)
    out = slot()
    try:
        decode(data[: int(len(data) * kept)], out, FRIENDLY, LIMITS)
    except UnsupportedImage as error:
        assert ACCEPTED in error.detail
    else:
        np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
def test_a_truncated_file_is_called_truncated(form: str) -> None:
    """The usual cause is an interrupted upload; the message should help."""
    data = encode(photo().resize((400, 300)), form)

    assert refusal(data[: len(data) // 2]).endswith(f"image is truncated; {ACCEPTED}")


def test_a_png_bomb_is_refused_by_its_header() -> None:
    """900 million pixels in 100 kB: refused in milliseconds, without memory."""
    bomb = png_header(30_000, 30_000)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    detail = refusal(bomb, TooManyPixels, DecodeLimits(max_pixels=100_000_000))

    assert time.perf_counter() - start < 0.1
    assert psutil.Process().memory_info().rss - before < 10_000_000
    assert detail == ("the image has 30000 x 30000 = 900000000 pixels; the limit is 100000000 (VIM_MAX_PIXELS)")


def gif_frame_beyond_its_screen() -> bytes:
    """A 64x48 screen whose frame claims 60,000x60,000."""
    data = encode(photo("P"), "GIF")
    start = data.index(b",\x00\x00\x00\x00\x40\x00\x30\x00")
    return data[: start + 5] + struct.pack("<HH", 60_000, 60_000) + data[start + 9 :]


def webp_canvas() -> bytes:
    """An animation whose canvas claims 16,383x16,383."""
    data = encode(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)])
    return data[:24] + (16_382).to_bytes(3, "little") * 2 + data[30:]


def tiff_tile() -> bytes:
    """16x16 pixels stored as a tile of 20,000x20,000: 400 MB unpacked from 400 kB."""
    packed = zlib.compress(bytes(20_000 * 2_000), 9)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: -1, 325: len(packed)}
    return tiff(tags, packed)


def bmp_header() -> bytes:
    """A bitmap that claims 50,000x50,000."""
    data = encode(photo(), "BMP")
    return data[:18] + struct.pack("<ii", 50_000, -50_000) + data[26:]


def jpeg_header() -> bytes:
    """A JPEG that claims 65,500x65,500."""
    data = encode(photo(), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", 65_500, 65_500) + data[start + 4 :]


BOMBS = [gif_frame_beyond_its_screen, webp_canvas, tiff_tile, bmp_header, jpeg_header]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_other_bombs_are_refused_by_their_header(bomb: Callable[[], bytes]) -> None:
    """Each format has its own way to claim more than it holds."""
    data = bomb()
    before = psutil.Process().memory_info().rss
    detail = refusal(data, TooManyPixels, DecodeLimits(max_pixels=100_000_000))

    assert psutil.Process().memory_info().rss - before < 10_000_000
    assert "the limit is 100000000 (VIM_MAX_PIXELS)" in detail


def test_the_pixel_limit_is_inclusive() -> None:
    """64 x 48 = 3,072."""
    data = encode(photo(), "PNG")

    assert run(data, DecodeLimits(max_pixels=3_072)).shape == (SIZE, SIZE, 3)
    assert "3072" in refusal(data, TooManyPixels, DecodeLimits(max_pixels=3_071))


def test_a_large_image_within_the_limit_passes_without_pillows_warning() -> None:
    """Pillow's own limit is off: it warns from 89 million pixels on and cannot be explained to a client."""
    large = encode(Image.new("1", (12_000, 8_000)), "PNG")

    assert run(large, DecodeLimits(max_pixels=100_000_000)).max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (3, 7)])
def test_tiny_and_narrow_images_pass(shape: tuple[int, int]) -> None:
    """The smallest image is an image."""
    assert run(encode(Image.new("RGB", shape, "red"), "PNG"))[SIZE // 2, SIZE // 2].tolist() == [255, 0, 0]


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
    """No path, address or byte of the file in the answer, and no traceback that keeps the image alive."""

    def fail(*_: object, **__: object) -> None:
        raise error

    data = encode(photo(), "PNG")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnsupportedImage) as caught:
        decode(data, slot(), FRIENDLY, LIMITS)
    reason = "truncated" if isinstance(error, EOFError) else "damaged or of an unsupported kind"

    assert caught.value.detail == f"the PNG image is {reason}; {ACCEPTED}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_failure_after_decoding_is_refused_but_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It may be the file's fault or ours; only the log can tell."""

    def fail(image: Image.Image) -> Pixels:
        raise ValueError("mode")

    with pytest.raises(UnsupportedImage), caplog.at_level(logging.WARNING):
        decode(encode(photo(), "PNG"), slot(), fail, LIMITS)

    assert "cannot be preprocessed" in caplog.text
    assert "ValueError: mode" in caplog.text


def test_a_refused_image_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of bad files must not flood the log; the request's own line tells."""
    with caplog.at_level(logging.INFO):
        refusal(encode(photo(), "PNG")[:100])

    assert caplog.text == ""


def test_pixels_of_another_shape_are_our_mistake() -> None:
    """Numpy would broadcast one pixel over the whole slot."""
    with pytest.raises(RuntimeError, match="slot holds"):
        decode(encode(photo(), "PNG"), slot(), lambda image: np.zeros((1, 1, 3), np.uint8), LIMITS)


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """It would print a line for every bad row, straight to stderr."""
    data = bytearray(encode(photo("1").resize((400, 300)), "TIFF", compression="group4"))
    for at in range(40, len(data) - 200, 7):
        data[at] ^= 0x5A
    try:
        run(bytes(data))
    except UnsupportedImage:
        pass

    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_pillows_warnings_are_silent_in_every_thread() -> None:
    """Tests turn warnings into errors, so a warning would be a refusal here."""
    data = encode(photo(), "TIFF")
    odd = bytearray(data)
    count = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])[0]
    assert count > 3
    transparent = encode(photo("P"), "PNG", transparency=bytes(range(200)))
    outcomes: list[object] = []

    def work() -> None:
        for file in (transparent, bytes(odd)):
            outcomes.append(run(file).shape)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes == [(SIZE, SIZE, 3)] * 8


def mutations(seed: int, count: int) -> list[bytes]:
    """Damaged copies of good files."""
    rng = random.Random(seed)
    good = [encode(photo(mode), form) for form, mode in FILES]
    damaged = []
    for _ in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.randrange(min(len(data), rng.choice([64, 512, len(data)])))
            data[at : at + 1] = rng.choice([b"", bytes([rng.randrange(256)]), b"\xff", b"\x00", rng.randbytes(4)])
        damaged.append(bytes(data))
    return damaged


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_decode_or_are_refused(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing but a ServiceError, nothing on stderr, and the next good image is as it was."""
    good = encode(photo(), "PNG")
    expected = run(good)
    for data in mutations(seed, 300):
        try:
            run(data)
        except (UnsupportedImage, TooManyPixels):
            pass

    np.testing.assert_array_equal(run(good), expected)
    assert capfd.readouterr().err == ""


def test_pillows_own_limit_is_off() -> None:
    """Ours is on, per call."""
    assert images.Image.MAX_IMAGE_PIXELS is None
