"""JPEG files -> the model's pixels without Pillow's decoder and resize: the same pixels in about a third of the time.

simplejpeg decodes, `model.preprocessing.compiled.resize` computes the wanted window alone. The file's structure and
size have been checked before (`images`). What is not plain is left to Pillow: files that libjpeg warns about, shapes
that the kernel does not take.
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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.preprocessing.recipe import UNTOUCHED, Preprocess
from model.preprocessing.resize import UPRIGHT, Turn
from service.images.header import Shape

if TYPE_CHECKING:
    from model.preprocessing.compiled.cmyk import CmykToRgb
    from model.preprocessing.compiled.resize import Resize

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height

log = logging.getLogger(__name__)

QUICK_SIDE = 256
# A thread keeps the memory for so many pixels (4 megapixels): fresh memory costs a page fault for each 4 kB.
KEPT_BYTES = 12 << 20
# Where libjpeg-turbo finds its lines aligned it writes them past the caches, and the resize reads them at once.
LINE_BYTES, OFF_LINE = 32, 4
BLOCK = 64  # bytes that are converted together


def encode(pixels: Pixels) -> bytes:
    """(H, W, 3) -> a JPEG file, for measuring with."""
    import simplejpeg

    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=88, colorsubsampling="420")
    return encoded


def _off_line(size: int) -> Pixels:
    memory = np.empty(size + LINE_BYTES, np.uint8)
    start = (OFF_LINE - memory.ctypes.data) % LINE_BYTES
    return memory[start : start + size]


def _let_go(memory: Pixels) -> None:
    """Give the pages back, without Python's lock; what is in them is lost.

    Freeing 200 MB takes the kernel 10 ms, and numpy frees with the lock held, for which the event loop then waits.
    """
    address = memory.ctypes.data
    start = address + -address % mmap.PAGESIZE
    stop = (address + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


class Jpegs:
    """A decoder for plain JPEG files; with `scale` large ones are made smaller while they are decoded (not exact)."""

    def __init__(self, cache_dir: Path | None = None, *, scale: bool = False) -> None:
        self._cache_dir, self._scale = cache_dir, scale
        self._decode: Callable[..., Pixels]  # this and the next before there is a resize
        self._inks: CmykToRgb
        self._resize: Resize | None = None
        self._kept = threading.local()
        self._loaded = threading.Event()
        # Half a second of importing and compiling, beside the model's own start; whoever decodes earlier waits.
        threading.Thread(target=self._load, name="compile the resize", daemon=True).start()

    def quick(self, recipe: Preprocess) -> bool:
        """Is it compiled, so that nobody waits for that, and the model's input not too large?"""
        return self._resize is not None and UNTOUCHED < recipe.size <= QUICK_SIDE

    def pixels(self, data: bytes, image: Any, recipe: Preprocess) -> tuple[Pixels, float] | None:
        """The pixels of a PIL image, opened and not yet decoded, and when that was done; None: Pillow's business."""
        if image.format != "JPEG" or (turn := recipe.plain_turn(image)) is None:
            return None
        return self._turned(data, recipe, turn, image.size, image.mode == "CMYK")

    def plain(self, data: bytes, recipe: Preprocess, shape: Shape) -> tuple[Pixels, float] | None:
        """The same of a plain file (`segments`) of this shape, which Pillow need not open."""
        if recipe.resize is None or shape.pixels == 0:
            return None
        return self._turned(data, recipe, UPRIGHT, (shape.width, shape.height), shape.plain == 4)

    def _turned(
        self, data: bytes, recipe: Preprocess, turn: Turn, size: Size, inks: bool
    ) -> tuple[Pixels, float] | None:
        if not self._loaded.is_set():
            self._loaded.wait()
        if self._resize is None:
            return None
        width, height = size = self._scaled(data, recipe, size) if self._scale else size
        axes = recipe.axes((height, width) if turn.swaps else size)
        room = self._resize.room_for(width)
        if not self._resize.can(*axes, turn) or (decoded := self._decoded(data, recipe, size, room, inks)) is None:
            return None
        at = time.perf_counter()
        found = recipe.padded(self._resize(decoded, *axes, turn, room), *axes)
        if decoded.nbytes > KEPT_BYTES:
            _let_go(decoded)
        return found, at

    def _scaled(self, data: bytes, recipe: Preprocess, size: Size) -> Size:
        """The size that is decoded to; as it is where libjpeg has something to say."""
        import simplejpeg

        with contextlib.suppress(ValueError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, **self._scaling(recipe))
            return width, height
        return size

    def _scaling(self, recipe: Preprocess) -> dict[str, Any]:
        return {"min_height": recipe.resize, "min_width": recipe.resize, "min_factor": 2} if self._scale else {}

    def _decoded(self, data: bytes, recipe: Preprocess, size: Size, room: int, inks: bool) -> Pixels | None:
        """(H, W, 3) with room behind it, or None where libjpeg has something to say."""
        width, height = size
        channels, colours = (4, "CMYK") if inks else (3, "RGB")
        count = channels * width * height
        memory = self._memory(-(-count // BLOCK) * BLOCK + room)
        try:
            found = self._decode(data, colorspace=colours, buffer=memory, **self._scaling(recipe))
        except ValueError:
            return None
        if found.shape != (height, width, channels):
            return None
        if inks:
            self._inks(memory[: memory.size - room])
        return memory[: 3 * width * height].reshape(height, width, 3)

    def _memory(self, size: int) -> Pixels:
        """So many bytes, of which the thread must need none any more when it asks again."""
        if size > KEPT_BYTES:
            return _off_line(size)
        if not hasattr(self._kept, "memory"):
            self._kept.memory = _off_line(KEPT_BYTES)
        kept: Pixels = self._kept.memory[:size]
        return kept

    def _load(self) -> None:
        try:
            import simplejpeg

            from model.preprocessing.compiled.cmyk import CmykToRgb
            from model.preprocessing.compiled.resize import Resize

            directory = None if self._cache_dir is None else self._cache_dir / "numba"
            self._decode, self._inks = simplejpeg.decode_jpeg, CmykToRgb(directory)
            self._resize = Resize(directory)
        except Exception as error:  # a missing compiler costs speed, not the service
            log.warning("JPEG files are decoded by Pillow: %s: %s", type(error).__name__, error)
        finally:
            self._loaded.set()
