"""Decode and resize JPEG files without Pillow: the same pixels in about a third of the time.

simplejpeg decodes, and `model.preprocessing.compiled.resize` computes only the pixels that the crop keeps. The file's
size and structure have been checked before. Pillow decodes the rest: files that libjpeg warns about, and sizes that the
compiled resize does not support.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model.preprocessing.recipe import UNTOUCHED, Preprocess, embedded_profile
from model.preprocessing.resize import UPRIGHT, Pixels, Turn
from service.images.header import Header

if TYPE_CHECKING:
    from model.preprocessing.compiled.cmyk import CmykToRgb
    from model.preprocessing.compiled.resize import Resize

Size = tuple[int, int]  # width, height


class Decoded(NamedTuple):
    """A preprocessed image: the model's pixels, when the file was decoded and not yet resized, and its ICC profile."""

    pixels: Pixels
    at: float
    profile: bytes = b""


log = logging.getLogger(__name__)

# Each thread keeps memory for images of up to 4 megapixels: fresh memory costs a page fault per 4 kB.
KEPT_BYTES = 12 << 20
# libjpeg-turbo writes aligned rows past the caches, and the resize would have to fetch them again at once. So the
# memory starts 4 bytes after a multiple of 32.
ALIGNMENT, OFFSET = 32, 4
BLOCK = 64  # bytes that are converted from CMYK together


def encode(pixels: Pixels) -> bytes:
    """(H, W, 3), or (H, W, 4) of CMYK -> a JPEG file, for measurements and the self-test."""
    import simplejpeg

    colours = "CMYK" if pixels.shape[2] == 4 else "RGB"
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=88, colorspace=colours, colorsubsampling="420")
    return encoded


def _in_srgb(found: Decoded | None, recipe: Preprocess, profile: bytes, *, grey: bool) -> Decoded | None:
    if found is None or not profile:
        return found
    return Decoded(recipe.in_srgb(found.pixels, profile, grey=grey), found.at, profile)


def unaligned_memory(size: int) -> Pixels:
    """Uninitialised bytes that libjpeg-turbo does not write past the caches."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = (OFFSET - memory.ctypes.data) % ALIGNMENT
    return memory[start : start + size]


def release_pages(memory: Pixels) -> None:
    """Return the whole pages of an array to the kernel without holding Python's lock; their content is lost.

    The kernel takes 10 ms to free 200 MB, and numpy frees with the lock held, so the event loop would wait.
    """
    address = memory.ctypes.data
    start = address + -address % mmap.PAGESIZE
    stop = (address + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


class ThreadMemory(threading.local):
    """Memory that a thread reuses for each image that it decodes."""

    def __init__(self) -> None:
        self.bytes = unaligned_memory(KEPT_BYTES)


class Jpegs:
    """A decoder of plain JPEG files; with `scale`, large ones are scaled down while they are decoded (not exact)."""

    def __init__(self, cache_dir: Path | None = None, *, scale: bool = False) -> None:
        self.ready = False  # True when the code is compiled, so that decoding does not wait for that
        self.memory = ThreadMemory()
        self._cache_dir, self._scale = cache_dir, scale
        self._decode: Callable[..., Pixels]  # set before `_resize`, like the next one
        self._cmyk_to_rgb: CmykToRgb
        self._resize: Resize | None = None
        self._loaded = threading.Event()
        # Importing and compiling take half a second while the model starts; a thread that decodes earlier waits.
        threading.Thread(target=self._load, name="compile the resize", daemon=True).start()

    def decode_plain(self, data: bytes, header: Header, recipe: Preprocess) -> Decoded | None:
        """Decode a plain file (see `service.images.inspect_jpeg`); None when Pillow has to decode it."""
        width, height = header.width, header.height
        if recipe.size <= UNTOUCHED or width == 0 or height == 0:
            return None
        inks = header.plain_components == 4
        if inks and recipe.converts_inks(header.profile):
            return None
        if not self._loaded.is_set():
            self._loaded.wait()
        found = self._decode_and_resize(data, recipe, UPRIGHT, (width, height), inks)
        return _in_srgb(found, recipe, header.profile, grey=header.plain_components == 1)

    def decode_opened(self, data: bytes, image: Any, recipe: Preprocess) -> Decoded | None:
        """Decode a file that Pillow has opened and not yet decoded; None when Pillow has to decode it."""
        if image.format != "JPEG" or (turn := recipe.plain_turn(image)) is None:
            return None
        if not self._loaded.is_set():
            self._loaded.wait()
        found = self._decode_and_resize(data, recipe, turn, image.size, image.mode == "CMYK")
        return _in_srgb(found, recipe, embedded_profile(image), grey=image.mode == "L")

    def _decode_and_resize(self, data: bytes, recipe: Preprocess, turn: Turn, size: Size, cmyk: bool) -> Decoded | None:
        """Decode and resize. This is one function for speed, because it runs on the event loop."""
        if (resize := self._resize) is None:
            return None
        options = self._scaling(recipe) if self._scale else {}
        width, height = self._scaled(data, size, options) if options else size
        axes = recipe.axes((height, width) if turn.swaps else (width, height))
        margin = resize.room_for(width)  # bytes that the resize may read after the pixels
        if not resize.can(*axes, turn):
            return None
        channels, colours = (4, "CMYK") if cmyk else (3, "RGB")
        needed = -(-channels * width * height // BLOCK) * BLOCK + margin
        memory = self.memory.bytes[:needed] if needed <= KEPT_BYTES else unaligned_memory(needed)
        try:
            found = self._decode(data, colorspace=colours, buffer=memory, **options)
        except ValueError:  # libjpeg warns
            return None
        if found.shape != (height, width, channels):
            return None
        if cmyk:
            self._cmyk_to_rgb(memory[: needed - margin])
        decoded_at = time.perf_counter()
        rgb = memory[: 3 * width * height].reshape(height, width, 3)
        pixels = resize(rgb, *axes, turn, margin)
        if len(pixels) != recipe.size or pixels.shape[1] != recipe.size:
            pixels = recipe.padded(pixels, *axes)
        if needed > KEPT_BYTES:
            release_pages(memory)
        return Decoded(pixels, decoded_at)

    def _scaling(self, recipe: Preprocess) -> dict[str, Any]:
        return {"min_height": recipe.resize, "min_width": recipe.resize, "min_factor": 2}

    def _scaled(self, data: bytes, size: Size, options: dict[str, Any]) -> Size:
        """The size after scaling; unchanged where libjpeg warns."""
        import simplejpeg

        with contextlib.suppress(ValueError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, **options)
            return width, height
        return size

    def _load(self) -> None:
        try:
            import simplejpeg

            from model.preprocessing.compiled.cmyk import CmykToRgb
            from model.preprocessing.compiled.resize import Resize

            directory = None if self._cache_dir is None else self._cache_dir / "numba"
            self._decode, self._cmyk_to_rgb = simplejpeg.decode_jpeg, CmykToRgb(directory)
            self._resize = Resize(directory)
            self._check()
            self.ready = True
        except Exception as error:  # without a compiler the service is slower, but works
            self._resize = None
            log.warning("JPEG files are decoded by Pillow: %s: %s", type(error).__name__, error)
        finally:
            self._loaded.set()

    def _check(self) -> None:
        """Raise RuntimeError unless small files of every kind get Pillow's pixels."""
        from service.images import jpeg_check

        for sample in jpeg_check.samples():
            found = self._decode_and_resize(sample.data, jpeg_check.RECIPE, sample.turn, sample.size, sample.cmyk)
            if found is None or not np.array_equal(found[0], jpeg_check.expected(sample)):
                raise RuntimeError(f"the compiled code does not give Pillow's pixels of {sample}")
