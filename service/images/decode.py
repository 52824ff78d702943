"""One encoded image -> the model's pixels, in a slot of shared memory. The service uses Pillow here and nowhere else.

Bytes are believed in nothing: the format is sniffed and must be an accepted one, size and structure are read from the
header (`structure`, `segments`) and checked before anything is decoded, and whatever Pillow raises becomes a
ServiceError that shows nothing of the inside. What the model's pixels are, `model.preprocessing.recipe` knows; when to
decode, the engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from model.preprocessing.recipe import Preprocess
from service.errors import EmptyBody, ImageTooComplex, TooManyPixels, UnsupportedImage
from service.images import inspect_file, inspect_jpeg
from service.images.formats import ACCEPTED, sniff
from service.images.header import MOST_SCAN_PIXELS, Shape
from service.images.jpeg import Jpegs

Pixels = NDArray[np.uint8]

log = logging.getLogger(__name__)

# Pillow would otherwise load them during the first requests. The JPEG plugin opens MPO.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# Everything seen from Pillow's decoders on mutated files, and what its source can raise beside.
_PILLOW_RAISES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_pixels decides, before decoding


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may cost; `max_bytes` is memory, for all images that are being decoded together."""

    max_pixels: int
    max_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds spent on one image."""

    decode_s: float
    preprocess_s: float


Hold = Callable[[int], contextlib.AbstractContextManager[object]]


def _at_once(_: int) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


def prepare(
    image: bytes | Pixels,
    out: Pixels,
    preprocess: Callable[[Image.Image], Pixels],
    limits: DecodeLimits,
    hold: Hold = _at_once,
    jpegs: Jpegs | None = None,
) -> DecodeTimes:
    """As `decode`, of an encoded image or of its pixels: uint8 (H, W, 3), RGB."""
    if isinstance(image, bytes):
        return decode(image, out, preprocess, limits, hold, jpegs)
    return _place(image, out, preprocess, limits)


def _place(
    image: Pixels, out: Pixels, preprocess: Callable[[Image.Image], Pixels], limits: DecodeLimits
) -> DecodeTimes:
    start = time.perf_counter()
    height, width, _ = image.shape
    _check_area(width, height, limits)
    try:
        pixels = _preprocessed(Image.fromarray(image), preprocess)
    except _PILLOW_RAISES:
        pass
    else:
        _copy(pixels, out)
        return DecodeTimes(0.0, time.perf_counter() - start)
    raise UnsupportedImage(f"pixels of {width} x {height} cannot be preprocessed")


def decode(
    data: bytes,
    out: Pixels,
    preprocess: Callable[[Image.Image], Pixels],
    limits: DecodeLimits,
    hold: Hold = _at_once,
    jpegs: Jpegs | None = None,
) -> DecodeTimes:
    """Decode the first frame, preprocess it and copy the pixels to `out`, which stays untouched on any error.

    `jpegs` does what it can, Pillow the rest. `hold(bytes)` is entered while so much memory is in use. Raises
    EmptyBody, UnsupportedImage, TooManyPixels, ImageTooComplex, and what `hold` raises. Safe to call from many threads.
    """
    name = _accepted(data)
    if jpegs and name == "JPEG" and isinstance(preprocess, Preprocess) and (shape := _plain(data)):
        _check(name, shape, limits)
        with hold(shape.bytes):
            if times := _decode_plain(data, shape, out, preprocess, jpegs):
                return times
        jpegs = None  # had its try
    return _decode_opened(data, name, out, preprocess, limits, hold, jpegs)


def decode_small(
    data: bytes, shape: Shape, out: Pixels, recipe: Preprocess, limits: DecodeLimits, jpegs: Jpegs
) -> DecodeTimes:
    """As `decode`, of a file that `small` has measured, in the least time; never waits."""
    _check("JPEG", shape, limits)
    if times := _decode_plain(data, shape, out, recipe, jpegs):
        return times
    return _decode_opened(data, "JPEG", out, recipe, limits, _at_once, None)


def _decode_plain(data: bytes, shape: Shape, out: Pixels, recipe: Preprocess, jpegs: Jpegs) -> DecodeTimes | None:
    """A plain JPEG, which Pillow need not open; None: whatever is wrong, Pillow finds it again and says it."""
    start = time.perf_counter()
    try:
        found = jpegs.plain(data, recipe, shape)
    except _PILLOW_RAISES:
        return None
    if found is None:
        return None
    _copy(found[0], out)
    return DecodeTimes(found[1] - start, time.perf_counter() - found[1])


def _decode_opened(
    data: bytes,
    name: str,
    out: Pixels,
    preprocess: Callable[[Image.Image], Pixels],
    limits: DecodeLimits,
    hold: Hold,
    jpegs: Jpegs | None,
) -> DecodeTimes:
    """What Pillow opens, whoever decodes it then."""
    shape = _measured(name, data)
    _check(name, shape, limits)
    _silence_warnings()
    with hold(shape.bytes):
        try:
            pixels, times = _decode(data, name, preprocess, shape, jpegs)
        except _PILLOW_RAISES as error:
            log.debug("%s refused: %s", name, type(error).__name__)
            reason = _reason(error)
        else:
            _copy(pixels, out)
            return times
    # Raised out here the answer has no Pillow traceback, which would keep the image and its bytes alive.
    raise _unsupported(f"the {name} image is {reason}")


def _accepted(data: bytes) -> str:
    if not data:
        raise EmptyBody("the image has no bytes")
    name = sniff(data)
    if name is None:
        raise _unsupported("the bytes are not an image of a known format")
    if name not in ACCEPTED:
        raise _unsupported(f"{name} is not supported")
    return name


def _plain(data: bytes) -> Shape | None:
    try:
        return inspect_jpeg.plain(data)
    except (struct.error, IndexError):
        return None


def _measured(name: str, data: bytes) -> Shape:
    try:
        return inspect_file.measure(name, data)
    except (struct.error, IndexError, OverflowError):  # the last of offsets that no file has
        raise _unsupported(f"the {name} image is truncated") from None


def _check(name: str, shape: Shape, limits: DecodeLimits) -> None:
    _check_area(shape.width, shape.height, limits)
    if shape.scans * shape.pixels > MOST_SCAN_PIXELS:
        raise ImageTooComplex(
            f"the {name} image has too many scans for {shape.width} x {shape.height} pixels, which would take too "
            "long; save it with fewer scans, or not progressive"
        )
    if shape.bytes > limits.max_bytes:
        raise ImageTooComplex(
            f"decoding this {name} image of {shape.width} x {shape.height} pixels takes up to {shape.bytes} bytes of "
            f"memory; the limit is {limits.max_bytes} (VIM_MAX_DECODE_BYTES)"
        )


def _check_area(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"the image has {width} x {height} = {width * height} pixels; "
            f"the limit is {limits.max_pixels} (VIM_MAX_PIXELS)"
        )


def _decode(
    data: bytes, name: str, preprocess: Callable[[Image.Image], Pixels], shape: Shape, jpegs: Jpegs | None
) -> tuple[Pixels, DecodeTimes]:
    start = time.perf_counter()
    with Image.open(io.BytesIO(data), formats=(name.upper(),)) as image:
        if image.width * image.height > shape.pixels:
            raise ValueError("Pillow finds a larger picture than its header was read to claim")
        if jpegs and isinstance(preprocess, Preprocess) and (found := jpegs.pixels(data, image, preprocess)):
            return found[0], DecodeTimes(found[1] - start, time.perf_counter() - found[1])
        image.load()
        if len(image.info.get("exif", b"")) > inspect_jpeg.MOST_EXIF_BYTES:
            del image.info["exif"]
        decoded = time.perf_counter()
        pixels = _preprocessed(image, preprocess)
    return pixels, DecodeTimes(decoded - start, time.perf_counter() - decoded)


def _preprocessed(image: Image.Image, preprocess: Callable[[Image.Image], Pixels]) -> Pixels:
    try:
        return preprocess(image)
    except _PILLOW_RAISES:
        # Odd files can still fail here, but so would a mistake of ours: only this one leaves a trace.
        log.warning(
            "a decoded %s image of mode %s and size %s cannot be preprocessed",
            image.format,
            image.mode,
            image.size,
            exc_info=True,
        )
        raise


def _copy(pixels: Pixels, out: Pixels) -> None:
    if pixels.shape != out.shape:  # numpy would broadcast
        raise RuntimeError(f"preprocessing gave {pixels.shape}, the slot holds {out.shape}")
    out[...] = pixels


def _reason(error: Exception) -> str:
    """Never Pillow's own words: they name objects by address and quote bytes of the file."""
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "truncated" if cut else "damaged or of an unsupported kind"


def _unsupported(reason: str) -> UnsupportedImage:
    return UnsupportedImage(f"{reason}; accepted formats: {', '.join(ACCEPTED)}")


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_warnings() -> None:
    """Pillow's warnings say what a client sent. `warnings.catch_warnings` would be local, but is not thread-safe."""
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _silence_libraries() -> None:
    """Pillow logs what is wrong with a file, and libtiff prints a line to stderr for every bad row."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):
        libtiff = ctypes.CDLL(_imaging.__file__)  # finds the symbols of whatever libtiff Pillow is linked to
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


_silence_libraries()
