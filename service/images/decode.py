"""Decode one image, preprocess it, and write the pixels into a slot of shared memory: the entry of this package.

Image bytes are untrusted: the format must be an accepted one, and size and structure are read from the header and
checked before anything is decoded. The arithmetic of preprocessing is in `model.preprocessing.recipe`; the engine
decides when to decode.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.preprocessing import colour
from model.preprocessing.recipe import UNTOUCHED, Preprocess
from service.errors import ImageTooComplex, TooManyPixels
from service.images import inspect_file, inspect_jpeg, pillow
from service.images.formats import ISOLATED, accepted_format, unsupported
from service.images.header import MAX_PACKED_BYTES, MAX_SCAN_PIXELS, Header
from service.images.isolated.process import DecoderProcesses
from service.images.jpeg import Decoded, Jpegs
from service.images.memory_budget import MemoryBudget

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Reserve = Callable[[int], contextlib.AbstractContextManager[object]]

MOST_PROFILES = 64  # of small files that are remembered
MAX_QUICK_SIDE = 256  # resizing to a larger input of a model takes too long for the event loop


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may cost; `max_bytes` is memory."""

    max_pixels: int
    max_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds spent on one image."""

    decode_s: float
    preprocess_s: float
    profile: colour.Kind | None = None  # what was done with the colour profile, if the recipe uses it and there is one


class Decoder:
    """Decodes images for one model, with its recipe.

    An image is encoded bytes, or RGB pixels: uint8 (height, width, 3). Both ways write uint8 (size, size, 3) to `out`,
    and leave it untouched on any error. They raise EmptyBody, UnsupportedImage, TooManyPixels, ImageTooComplex and
    OutOfMemory.

    - `decode(image, out)` decodes any image. It may take long and wait for memory: call it in a thread, from as many
      threads as you like. Raises DeadlineExceeded when the memory budget stays exhausted.
    - `quick(image)` returns a function for small plain JPEG files, which decode faster than a thread can be given work:
      call it with `out` on the event loop. None for all other images. Takes some microseconds.

    `decode` uses no memory beyond `budget`; without a budget only `limits` apply. Without `jpegs` Pillow
    decodes every file. Without `isolated`, the formats of `formats.ISOLATED` are refused.
    """

    def __init__(
        self,
        recipe: Preprocess,
        limits: DecodeLimits,
        budget: MemoryBudget | None = None,
        jpegs: Jpegs | None = None,
        isolated: DecoderProcesses | None = None,
    ) -> None:
        self._recipe = recipe
        self._limits = limits
        self._reserve: Reserve = budget.reserve if budget else _no_reservation
        self._jpegs = jpegs
        self._isolated = isolated
        self._converts = recipe.mode == "friendly"
        self._idle_profiles: set[bytes] = set()  # without effect; others take a millisecond, too long for the loop
        self._quick_jpegs = jpegs if UNTOUCHED < recipe.size <= MAX_QUICK_SIDE else None

    def decode(self, image: bytes | Pixels, out: Pixels) -> DecodeTimes:
        """Decode the first frame of a file, or take pixels, and preprocess. Blocks the thread."""
        return self._decode_file(image, out) if isinstance(image, bytes) else self._take_pixels(image, out)

    def quick(self, image: bytes | Pixels) -> Callable[[Pixels], DecodeTimes] | None:
        """A function that decodes this image to its argument without waiting; None where `decode` is needed."""
        jpegs = self._quick_jpegs
        if jpegs is None or not jpegs.ready or not isinstance(image, bytes):
            return None
        header = inspect_jpeg.inspect_small(image)
        if header is None or (self._converts and header.profile and header.profile not in self._idle_profiles):
            return None
        return functools.partial(self._decode_small, image, header, jpegs)

    def _take_pixels(self, pixels: Pixels, out: Pixels) -> DecodeTimes:
        start = time.perf_counter()
        self._check_area(pixels.shape[1], pixels.shape[0])
        return self._write(Decoded(pillow.preprocess(pixels, self._recipe), start), start, out)

    def _decode_file(self, data: bytes, out: Pixels) -> DecodeTimes:
        name = accepted_format(data)
        if name in ISOLATED:
            return self._decode_isolated(data, name, out)
        jpegs = self._jpegs if name == "JPEG" else None
        if jpegs is not None and (header := _plain_header(data)) is not None and not header.only_once:
            self._check(name, header)
            with self._reserve(header.memory_bytes):
                if (times := self._decode_plain(data, header, jpegs, out)) is not None:
                    return times
            jpegs = None  # it cannot decode this file
        return self._decode_by_pillow(data, name, jpegs, out, self._reserve)

    def _decode_small(self, data: bytes, header: Header, jpegs: Jpegs, out: Pixels) -> DecodeTimes:
        self._check("JPEG", header)
        times = self._decode_plain(data, header, jpegs, out)
        return times or self._decode_by_pillow(data, "JPEG", None, out, _no_reservation)

    def _decode_plain(self, data: bytes, header: Header, jpegs: Jpegs, out: Pixels) -> DecodeTimes | None:
        """Decode without Pillow; None on any error, because Pillow then decodes the file and reports the error."""
        start = time.perf_counter()
        try:
            decoded = jpegs.decode_plain(data, header, self._recipe)
        except pillow.ERRORS:
            return None
        return None if decoded is None else self._write(decoded, start, out)

    def _decode_by_pillow(
        self, data: bytes, name: str, jpegs: Jpegs | None, out: Pixels, reserve: Reserve
    ) -> DecodeTimes:
        header = _header(name, data)
        self._check(name, header)
        with reserve(header.memory_bytes):
            start = time.perf_counter()
            quick = None if header.only_once else jpegs
            return self._write(pillow.decode(data, name, header, self._recipe, quick), start, out)

    def _decode_isolated(self, data: bytes, name: str, out: Pixels) -> DecodeTimes:
        if self._isolated is None:
            raise unsupported(f"{name} is not decoded here")
        header = _header(name, data)
        self._check(name, header)
        with self._reserve(header.memory_bytes):
            start = time.perf_counter()
            return self._write(self._isolated.decode(data, name, header, self._recipe), start, out)

    def _write(self, decoded: Decoded, start: float, out: Pixels) -> DecodeTimes:
        pixels, profile = decoded.pixels, decoded.profile
        if pixels.shape != out.shape:  # numpy would broadcast
            raise RuntimeError(f"preprocessing gave {pixels.shape}, the slot holds {out.shape}")
        out[...] = pixels
        kind = colour.conversion(profile).kind if profile and self._converts else None
        small = len(profile) < inspect_jpeg.MAX_SMALL_BYTES and len(self._idle_profiles) < MOST_PROFILES
        if small and kind in ("srgb", "broken"):
            self._idle_profiles.add(profile)
        return DecodeTimes(decoded.at - start, time.perf_counter() - decoded.at, kind)

    def _check(self, name: str, header: Header) -> None:
        width, height = header.width, header.height
        self._check_area(width, height)
        pixels, limit = width * height, self._limits.max_bytes
        if header.scans * pixels > MAX_SCAN_PIXELS:
            raise ImageTooComplex(
                f"the {name} image has too many scans for {width} x {height} pixels, which would take too long; "
                "save it with fewer scans, or not progressive"
            )
        if (packed := int(pixels * header.packed_bytes)) > MAX_PACKED_BYTES:
            raise ImageTooComplex(
                f"the {name} image of {width} x {height} pixels unpacks to {packed} bytes, which would take too long; "
                "save it smaller, with 8 bits for each channel, or not interlaced"
            )
        if (needed := header.memory_bytes) > limit:
            raise ImageTooComplex(
                f"decoding this {name} image of {width} x {height} pixels takes up to {needed} bytes of memory; "
                f"the limit is {limit} (VIM_MAX_DECODE_BYTES)"
            )

    def _check_area(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise TooManyPixels(
                f"the image has {width} x {height} = {width * height} pixels; "
                f"the limit is {self._limits.max_pixels} (VIM_MAX_PIXELS)"
            )


def _no_reservation(_: int) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


def _plain_header(data: bytes) -> Header | None:
    try:
        return inspect_jpeg.inspect_plain(data)
    except (struct.error, IndexError):
        return None


def _header(name: str, data: bytes) -> Header:
    try:
        return inspect_file.inspect(name, data)
    except (struct.error, IndexError, OverflowError):  # OverflowError: of offsets that no file has
        raise unsupported(f"the {name} image is truncated") from None
