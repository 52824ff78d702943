"""Decode with Pillow. No other module of the service uses it.

Every exception of Pillow becomes an UnsupportedImage that shows nothing of Pillow or of the file. If the memory that
the image needs cannot be allocated, it becomes OutOfMemory; Pillow raises the same exceptions then.
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

from model.preprocessing.recipe import Preprocess, embedded_profile
from model.preprocessing.resize import Pixels
from service.errors import OutOfMemory, UnsupportedImage
from service.images import corrections
from service.images.formats import PILLOW_NAMES, unsupported
from service.images.header import Header
from service.images.inspect_jpeg import MAX_EXIF_BYTES
from service.images.jpeg import Decoded, Jpegs
from service.system import memory

log = logging.getLogger(__name__)

# Imported here because Pillow would otherwise load them during the first requests. The JPEG plugin opens MPO.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# Every exception that Pillow's decoders raised for mutated files, and the others that its source can raise.
ERRORS = (
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
COPIES = 2  # memory for preprocessing, in sizes of the pixels: 1.4 to 1.7 were measured
_IGNORE_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_pixels is checked before decoding
# Pillow's own reading of uncompressed TIFF files does not support planes of 16 bits, subsampling and inverted planes.
TiffImagePlugin.READ_LIBTIFF = True


def decode(data: bytes, name: str, header: Header, recipe: Preprocess, jpegs: Jpegs | None) -> Decoded:
    """Decode the first frame of a file in the format `name`, and preprocess it. Raises UnsupportedImage, OutOfMemory.

    Pillow opens the file; `jpegs` decodes it if it can.
    """
    _ignore_warnings()
    try:
        return _decode(data, name, header, recipe, jpegs)
    except ERRORS as error:
        log.debug("%s refused: %s", name, type(error).__name__)
        reason = _reason(error)
    # Outside the `except` block no Pillow traceback keeps the image and its bytes in memory.
    _check_memory(f"a {name} image of {header.width} x {header.height} pixels", header.memory_bytes)
    raise unsupported(f"the {name} image {reason}")


def load_isolated() -> None:
    """Import the decoders of `formats.ISOLATED` that are installed. Each decodes in one thread."""
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    with contextlib.suppress(ImportError):
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = 0


def preprocess(pixels: Pixels, recipe: Preprocess) -> Pixels:
    """Preprocess RGB pixels (H, W, 3). Raises UnsupportedImage, OutOfMemory."""
    try:
        return _preprocess(Image.fromarray(pixels), recipe)
    except ERRORS:
        pass
    height, width, _ = pixels.shape
    _check_memory(f"pixels of {width} x {height}", COPIES * pixels.nbytes)
    raise UnsupportedImage(f"pixels of {width} x {height} cannot be preprocessed")


def _decode(data: bytes, name: str, header: Header, recipe: Preprocess, jpegs: Jpegs | None) -> Decoded:
    with Image.open(io.BytesIO(data), formats=(PILLOW_NAMES.get(name, name.upper()),)) as image:
        if image.width * image.height > header.pixels:
            raise ValueError("Pillow finds a larger picture than the header says")
        if jpegs is not None and (decoded := jpegs.decode_opened(data, image, recipe)) is not None:
            return decoded
        loaded = corrections.load(image, data)
        if header.cicp is not None:
            loaded.info["cicp"] = header.cicp
        if len(loaded.info.get("exif") or b"") > MAX_EXIF_BYTES:
            del loaded.info["exif"]
        decoded_at = time.perf_counter()
        return Decoded(_preprocess(loaded, recipe), decoded_at, embedded_profile(loaded))


def _preprocess(image: Image.Image, recipe: Preprocess) -> Pixels:
    try:
        return recipe(image)
    except MemoryError:
        raise
    except ERRORS:
        # The file may be unusual, or this code may be wrong. Only in this case the log has a traceback.
        log.warning(
            "a decoded %s image of mode %s and size %s cannot be preprocessed",
            image.format,
            image.mode,
            image.size,
            exc_info=True,
        )
        raise


def _check_memory(subject: str, needed: int) -> None:
    """Raise OutOfMemory if the memory that a failed step needed cannot be allocated."""
    if not memory.can_allocate(needed):
        log.error("out of memory: %s needs up to %d bytes, and this process gets no more (ulimit -v?)", subject, needed)
        raise OutOfMemory(f"the server has no memory for {subject} now", retry_after_s=1)


def _reason(error: Exception) -> str:
    """The reason for the client, without Pillow's own text: it contains addresses of objects and bytes of the file."""
    if isinstance(error, corrections.RefusedError):
        return str(error)
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "is truncated" if cut else "is damaged or of an unsupported kind"


def _ignore_warnings() -> None:
    """Pillow's warnings show what a client sent. `warnings.catch_warnings` would be local, but is not thread-safe."""
    if _IGNORE_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _silence_libraries() -> None:
    """Pillow logs what is wrong with a file, and libtiff prints a line to stderr for every damaged row."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):
        libtiff = ctypes.CDLL(_imaging.__file__)  # finds the symbols of the libtiff that Pillow is linked to
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


_silence_libraries()
