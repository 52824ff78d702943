"""The files of `test_oracle` other than TIFF: their names, and the pixels of lossless ones."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.service.images.image_files import encode
from tests.service.images.oracle_files import (
    Values,
    apng,
    bmp,
    deepened,
    gif_partial,
    on_white,
    picture,
    png,
    run_lengths,
    webp_partial,
)
from tests.service.images.slow_files import chunk


class File(NamedTuple):
    """A file, its orientation, its pixels (None if only a decoder knows them), and the largest difference."""

    name: str
    data: bytes
    shown: Values | None = None
    orientation: int = 1
    levels: int = 2


RGBA = picture()
RGB, GREY, ALPHA = RGBA[..., :3], RGBA[..., :1], RGBA[..., 3:]


def pngs() -> Iterator[File]:
    """Every depth, colour type and kind of transparency, with and without interlacing."""
    for interlaced, bits in itertools.product((False, True), (1, 2, 4, 8, 16)):
        for name, values, colour, before, shown in (*_grey_pngs(bits), *_palette_pngs(bits), *_colour_pngs(bits)):
            data = png(values, bits, colour, interlaced=interlaced, before=before)
            yield File(f"PNG {name} {bits}{' interlaced' if interlaced else ''}", data, shown)


Png = tuple[str, Values, int, bytes, Values]  # name, values, colour type, chunks before the pixels, shown pixels


def _grey_pngs(bits: int) -> Iterator[Png]:
    grey = GREY >> 8 - bits if bits < 16 else deepened(GREY)
    shown, key = np.repeat(grey * (255.0 / ((1 << bits) - 1)), 3, 2), int(grey[3, 20, 0])
    yield "grey", grey, 0, b"", shown
    yield "grey, one clear,", grey, 0, chunk(b"tRNS", struct.pack(">H", key)), np.where(grey == key, 255, shown)


def _palette_pngs(bits: int) -> Iterator[Png]:
    if bits == 16:
        return
    colours, values = np.random.default_rng(bits).integers(0, 256, (1 << bits, 4), np.uint8), GREY >> 8 - bits
    palette, alpha = chunk(b"PLTE", colours[:, :3].tobytes()), chunk(b"tRNS", colours[:, 3].tobytes())
    yield "palette", values, 3, palette, colours[values[..., 0], :3]
    yield "palette, alpha,", values, 3, palette + alpha, on_white(colours[:, :3], colours[:, 3:])[values[..., 0]]


def _colour_pngs(bits: int) -> Iterator[Png]:
    if bits < 8:
        return
    rgba = deepened(RGBA) if bits == 16 else RGBA
    rgb, key = rgba[..., :3], rgba[3, 20, :3]
    yield "RGB", rgb, 2, b"", RGB
    hidden = np.where((rgb == key).all(2, keepdims=True), 255, RGB)
    yield "RGB, one clear,", rgb, 2, chunk(b"tRNS", struct.pack(">3H", *key)), hidden
    yield "RGBA", rgba, 6, b"", on_white(RGB, ALPHA)
    yield "grey, alpha,", rgba[..., ::3], 4, b"", np.repeat(on_white(GREY, ALPHA), 3, 2)


def photographs() -> Iterator[File]:
    """Usual files, written by Pillow: JPEG of every kind, WebP, GIF, compressed TIFF."""
    rgb = Image.fromarray(RGB)
    for progressive, sampling in itertools.product((False, True), (0, 1, 2)):
        name = f"JPEG, progressive {progressive}, subsampling {sampling}"
        options = {"progressive": progressive, "subsampling": sampling, "quality": 95}
        yield File(name, encode(rgb, "JPEG", **options), levels=6)
    yield File("JPEG grey", encode(rgb.convert("L"), "JPEG", quality=95))
    yield File("JPEG CMYK", encode(rgb.convert("CMYK"), "JPEG", quality=95), levels=6)
    yield File("JPEG with restarts", encode(rgb, "JPEG", quality=95, restart_marker_rows=1), levels=6)
    yield File("JPEG of RGB", encode(rgb, "JPEG", quality=95, keep_rgb=True))
    yield File("MPO", encode(rgb, "MPO", save_all=True, append_images=[rgb.rotate(180)], quality=95), levels=6)
    yield File("WebP", encode(rgb, "WEBP", quality=95), levels=6)
    yield File("WebP lossless", encode(rgb, "WEBP", lossless=True), RGB)
    yield File("WebP, alpha", encode(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA))
    yield File("WebP lossy, alpha", encode(Image.fromarray(RGBA), "WEBP", quality=95), levels=12)
    for mode in ("1", "L", "P"):
        yield File(f"GIF {mode}", encode(rgb.convert(mode), "GIF"), np.asarray(rgb.convert(mode).convert("RGB")))
    yield File("GIF interlaced, one clear", encode(rgb.convert("P"), "GIF", interlace=1, transparency=5))
    for compression, mode in (("group3", "1"), ("group4", "1"), ("tiff_ccitt", "1"), ("jpeg", "RGB"), ("jpeg", "L")):
        yield File(f"TIFF {compression} {mode}", encode(rgb.convert(mode), "TIFF", compression=compression), levels=6)
    yield File("TIFF YCbCr jpeg", encode(rgb.convert("YCbCr"), "TIFF", compression="jpeg", quality=95), levels=6)


def turned() -> Iterator[File]:
    """Every orientation in every format that supports it."""
    exif = Image.Exif()
    formats: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "PNG": {},
        "WEBP": {"lossless": True},
    }
    for orientation, (form, options) in itertools.product(range(2, 9), formats.items()):
        exif[0x0112] = orientation
        data = encode(Image.fromarray(RGB), form, exif=exif, **options)
        yield File(f"{form} turned {orientation}", data, RGB, orientation, 6 if form == "JPEG" else 2)


def _number(*parts: tuple[Values, int]) -> Values:
    number: Values = sum((part.astype(np.int64) << shift for part, shift in parts), np.zeros((), np.int64))
    return number


def bitmaps() -> Iterator[File]:
    """Every depth, header, mask and run length of a BMP."""
    red, green, blue, alpha = np.moveaxis(RGBA, -1, 0)
    no_alpha = _number((red, 16), (green, 8), (blue, 0))
    full = no_alpha + _number((alpha, 24))
    five = _number((red >> 3, 10), (green >> 3, 5), (blue >> 3, 0))
    rgb = (0xFF0000, 0xFF00, 0xFF)
    thin = (0x7C00, 0x3E0, 0x1F)
    six = _number((red >> 3, 11), (green >> 2, 5), (blue >> 3, 0))
    yield File("BMP 16", bmp(five, 16))
    yield File("BMP 16 masks", bmp(five, 16, masks=thin))
    yield File("BMP 16, 6 of green", bmp(six, 16, masks=(0xF800, 0x7E0, 0x1F)))
    yield File("BMP 24", bmp(no_alpha, 24), RGB)
    yield File("BMP 24 top down", bmp(no_alpha, 24, top_down=True), RGB)
    yield File("BMP 24 of OS/2", bmp(no_alpha, 24, header=12), RGB)
    yield File("BMP 32 with a fourth byte", bmp(full, 32), RGB)
    yield File("BMP 32 masks", bmp(full, 32, masks=rgb), RGB)
    for header in (56, 108, 124):
        options: dict[str, Any] = {"header": header}
        name = f"BMP header {header}"
        yield File(f"{name}, alpha", bmp(full, 32, masks=(*rgb, 0xFF000000), **options), on_white(RGB, ALPHA))
        yield File(f"{name}, no alpha", bmp(full, 32, masks=(*rgb, 0), **options), RGB)
        yield File(f"{name}, alpha 0", bmp(no_alpha, 32, masks=(*rgb, 0xFF000000), **options), RGB)
        swapped = _number((red, 0), (green, 8), (blue, 16), (alpha, 24))
        masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
        yield File(f"{name}, RGBA", bmp(swapped, 32, masks=masks, **options), on_white(RGB, ALPHA))
        bit = five + (_number((alpha > 127, 15)))
        yield File(f"{name}, one bit of alpha", bmp(bit, 16, masks=(*thin, 0x8000), **options))
        yield File(f"{name}, one bit, alpha 0", bmp(five, 16, masks=(*thin, 0x8000), **options), RGB, levels=8)
    for bits in (1, 4, 8):
        colours = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3))
        values = red >> 8 - bits
        yield File(f"BMP palette {bits}", bmp(values, bits, colours=colours), colours[values])
        yield File(f"BMP palette {bits} of OS/2", bmp(values, bits, colours=colours, header=12), colours[values])
        if bits > 1:
            kind = {8: 1, 4: 2}[bits]
            data = bmp(values, bits, colours=colours, pixels=run_lengths(values, bits), compression=kind)
            yield File(f"BMP run lengths {bits}", data, colours[values])


def animations() -> Iterator[File]:
    """Animations, most of them with a first frame that is smaller than the canvas."""
    for mode, options in (("1", {}), ("L", {}), ("P", {}), ("P", {"transparency": 3}), ("P", {"interlace": 0})):
        yield File(f"GIF {mode} within its canvas {options}", gif_partial(mode, **options))
    for alpha, lossless, frames in itertools.product((False, True), (False, True), (1, 2)):
        name = f"WebP within its canvas, alpha {alpha}, lossless {lossless}, {frames} frames"
        yield File(name, webp_partial(alpha=alpha, lossless=lossless, frames=frames), levels=6)
    yield File("APNG", apng(default=False, partial=False), RGB)
    yield File("APNG, second frame smaller", apng(default=False, partial=True), RGB)
    yield File("APNG with a static picture", apng(default=True, partial=True), RGB)
