"""TIFF files of every layout, written from known samples without Pillow, for `test_oracle`."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.service.images.oracle_files import HEIGHT, WIDTH, deepened, on_white, picture

Samples = NDArray[Any]  # (height, width, samples)
Shown = Callable[[Samples], Samples]
Order = Literal["<", ">"]  # of bytes: the lowest first, or the highest

ROWS_PER_STRIP, TILE = 7, 16
COMPRESSIONS = NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773


@dataclass(frozen=True)
class Layout:
    """How the samples of one kind of picture are stored."""

    order: Order = "<"
    compression: int = NONE
    planar: bool = False
    tiled: bool = False
    predictor: int = 1
    fill_order: int = 1
    orientation: int = 1


@dataclass(frozen=True)
class Kind:
    """Samples, their meaning, and the layouts for which 415 is the right answer."""

    name: str
    samples: Samples
    photometric: int
    bits: int
    shown: Shown
    extra: tuple[int, ...] = ()
    sample_format: int = 1
    colour_map: tuple[int, ...] = ()
    refused: Callable[[Layout], bool] = lambda _: False
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def layouts(self) -> Iterator[Layout]:
        """Every layout that the standard allows for these samples."""
        number = self.bits in (8, 16, 32)
        orders: tuple[Order, Order] = ("<", ">")
        for order in orders:
            for compression, planar, tiled in itertools.product(COMPRESSIONS, (False, True), (False, True)):
                layout = Layout(order, compression, planar, tiled)
                yield layout
                if compression in (LZW, DEFLATE) and number and self.photometric != 3:
                    yield replace(layout, predictor=3 if self.sample_format == 3 else 2)
        if self.bits <= 8 and self.samples.shape[2] in (1, 3):
            yield from (Layout(fill_order=2, compression=one) for one in (NONE, LZW, DEFLATE))
        if self.name in ("RGB 8", "grey 16", "float"):
            yield from (Layout(orientation=turn, compression=one) for turn in range(2, 9) for one in (NONE, LZW))


def write(kind: Kind, layout: Layout) -> bytes:
    """The file."""
    planes = np.moveaxis(kind.samples, -1, 0)[..., None] if layout.planar else kind.samples[None]
    blocks = [_encode(block, kind, layout) for plane in planes for block in _blocks(plane, layout.tiled)]
    samples = kind.samples.shape[2]
    tags: dict[int, tuple[int, ...]] = {
        256: (WIDTH,),
        257: (HEIGHT,),
        258: (kind.bits,) * samples,
        259: (layout.compression,),
        262: (kind.photometric,),
        266: (layout.fill_order,),
        274: (layout.orientation,),
        277: (samples,),
        284: (2 if layout.planar else 1,),
        317: (layout.predictor,),
        339: (kind.sample_format,) * samples,
        **({338: kind.extra} if kind.extra else {}),
        **({320: kind.colour_map} if kind.colour_map else {}),
        **({322: (TILE,), 323: (TILE,)} if layout.tiled else {278: (ROWS_PER_STRIP,)}),
        **kind.tags,
    }
    offsets, sizes = (324, 325) if layout.tiled else (273, 279)
    at, places = 8, []
    for block in blocks:
        places.append(at)
        at += len(block)
    tags |= {offsets: tuple(places), sizes: tuple(len(block) for block in blocks)}
    return assemble(layout.order, b"".join(blocks), tags)


def assemble(order: Order, pixels: bytes, tags: dict[int, tuple[int, ...]]) -> bytes:
    """A file of `pixels`, which begin at byte 8, and one directory."""
    pixels += bytes(len(pixels) % 2)
    at = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    entries, arrays = b"", b""
    for tag, values in sorted(tags.items()):
        form, kind = ("I", 4) if tag in (273, 279, 324, 325) else ("H", 3)
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        entries += struct.pack(order + "HHI", tag, kind, len(values))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", at + len(arrays))
        arrays += b"" if len(packed) <= 4 else packed + bytes(len(packed) % 2)
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(pixels))
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + bytes(4) + arrays


def _blocks(plane: Samples, tiled: bool) -> Iterator[Samples]:
    height, width = plane.shape[:2]
    if not tiled:
        yield from (plane[top : top + ROWS_PER_STRIP] for top in range(0, height, ROWS_PER_STRIP))
        return
    padded = np.pad(plane, ((0, -height % TILE), (0, -width % TILE), (0, 0)))
    for top, left in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        yield padded[top : top + TILE, left : left + TILE]


def _encode(block: Samples, kind: Kind, layout: Layout) -> bytes:
    if layout.predictor == 2:
        block = np.diff(block, axis=1, prepend=block.dtype.type(0))
    if layout.predictor == 3:
        data = _float_differences(block)
    elif kind.bits in (8, 16, 32):
        data = block.astype(block.dtype.newbyteorder(layout.order)).tobytes()
    else:
        bits = block[..., None] >> np.arange(kind.bits - 1, -1, -1) & 1
        data = np.packbits(bits.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()
    packed = _COMPRESS[layout.compression](data)
    if layout.fill_order == 1:
        return packed
    return np.packbits(np.unpackbits(np.frombuffer(packed, np.uint8)), bitorder="little").tobytes()


def _float_differences(block: Samples) -> bytes:
    rows = block.astype(">f4").view(np.uint8).reshape(len(block), -1, 4)
    planes = np.moveaxis(rows, 2, 1).reshape(len(block), -1)
    step = block.shape[2]
    planes[:, step:] -= planes[:, :-step].copy()
    return planes.tobytes()


def _lzw(data: bytes) -> bytes:
    """Literals only: cleared before codes would need ten bits."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = np.array([*codes, 257])[:, None] >> np.arange(8, -1, -1) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(data[at : at + 100]) - 1]) + data[at : at + 100] for at in range(0, len(data), 100))


_COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    NONE: lambda data: data,
    LZW: _lzw,
    DEFLATE: zlib.compress,
    PACKBITS: _packbits,
}


# --- Meaning of the samples ---------------------------------------------------------------------------------------


def _grey(white: float) -> Shown:
    return lambda samples: np.repeat(samples[..., :1] * (255.0 / white), 3, axis=2)


def _inverted(white: float) -> Shown:
    return lambda samples: 255 - _grey(white)(samples)


def _rgb(white: float, alpha: str = "") -> Shown:
    def shown(samples: Samples) -> Samples:
        values = samples * (255.0 / white)
        colour, clear = values[..., : 3 if values.shape[2] > 2 else 1], values[..., -1:]
        return {"": colour, "straight": on_white(colour, clear), "premultiplied": colour + 255 - clear}[alpha]

    return lambda samples: np.broadcast_to(shown(samples), (*samples.shape[:2], 3))


def _cmyk(white: float) -> Shown:
    return lambda samples: 255 * (1 - samples[..., :3] / white) * (1 - samples[..., 3:4] / white)


def _palette(colours: Samples) -> Shown:
    return lambda samples: colours[samples[..., 0]]


def _ycbcr(samples: Samples) -> Samples:
    y, cb, cr = np.moveaxis(samples.astype(float) - [0, 128, 128], -1, 0)
    shown: Samples = np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)
    return shown


def _big_endian(layout: Layout) -> bool:
    return layout.order == ">"


def _planar(layout: Layout) -> bool:
    return layout.planar


def _bits_reversed(layout: Layout) -> bool:
    return layout.fill_order == 2


def _kinds() -> Iterator[Kind]:
    rgba = picture()
    rgb, grey, alpha = rgba[..., :3], rgba[..., :1], rgba[..., 3:]
    grey_alpha = np.concatenate([grey, alpha], 2)
    premultiplied = np.concatenate([rgb * (alpha / 255.0), alpha], 2).astype(np.uint8)
    deep, deep_rgba = deepened(grey), deepened(rgba)
    for bits in (1, 2, 4, 8):
        white = (1 << bits) - 1
        yield Kind(f"grey {bits}", grey >> 8 - bits, 1, bits, _grey(white))
        yield Kind(f"grey {bits}, 0 is white", grey >> 8 - bits, 0, bits, _inverted(white))
        colours = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3))
        for name, scale in (("", 257), (" of 8 bits", 1)):
            colour_map = tuple(int(value) * scale for value in colours.T.ravel())
            samples = grey >> 8 - bits
            yield Kind(f"palette {bits}{name}", samples, 3, bits, _palette(colours), colour_map=colour_map)
    colours = np.random.default_rng(9).integers(0, 256, (256, 3))
    colour_map = tuple(int(value) * 257 for value in colours.T.ravel())
    with_alpha = on_white(colours[grey[..., 0]], alpha)
    yield Kind("palette, alpha", grey_alpha, 3, 8, lambda _: with_alpha, (2,), 1, colour_map, _planar)
    yield Kind("palette, unspecified", grey_alpha, 3, 8, _palette(colours), (0,), 1, colour_map)
    yield Kind("grey 12", deep >> 4, 1, 12, _grey(4095), refused=_big_endian)
    yield Kind("grey 16", deep, 1, 16, _grey(65535))
    yield Kind("grey 16, 0 is white", deep, 0, 16, _inverted(65535), refused=_big_endian)
    yield Kind("grey 16 signed", (deep >> 1).astype(np.int16), 1, 16, _grey(65535), sample_format=2)
    yield Kind("grey 32 signed", deep.astype(np.int32), 1, 32, _grey(65535), sample_format=2)
    yield Kind("grey 32", deep.astype(np.uint32), 1, 32, _grey(65535), refused=_big_endian)
    yield Kind("grey 32, all bits", deep.astype(np.uint32) * 65537, 1, 32, _grey(2**32 - 1), refused=lambda _: True)
    unit = (grey / np.float32(255)).astype(np.float32)
    yield Kind("float", unit, 1, 32, _grey(1), sample_format=3)
    yield Kind("float, 0 is white", unit, 0, 32, _inverted(1), sample_format=3, refused=lambda _: True)
    yield Kind("grey, alpha", grey_alpha, 1, 8, _rgb(255, "straight"), (2,), refused=_planar)
    multiplied = (grey * (alpha / 255.0)).astype(np.uint8)
    both = np.concatenate([multiplied, alpha], 2)
    yield Kind("grey, premultiplied", both, 1, 8, _rgb(255, "premultiplied"), (1,), refused=_planar)
    yield Kind("grey, unspecified", grey_alpha, 1, 8, _rgb(255), (0,))
    for bits in (8, 16):
        full, many = (1 << bits) - 1, deep_rgba if bits == 16 else rgba
        yield Kind(f"RGB {bits}", many[..., :3], 2, bits, _rgb(full))
        yield Kind(f"RGBA {bits}", many, 2, bits, _rgb(full, "straight"), (2,))
        yield Kind(f"RGB, unspecified {bits}", many, 2, bits, _rgb(full), (0,))
        wide = deepened(premultiplied) if bits == 16 else premultiplied
        yield Kind(f"RGBA premultiplied {bits}", wide, 2, bits, _rgb(full, "premultiplied"), (1,))
        yield Kind(f"CMYK {bits}", many, 5, bits, _cmyk(full))
        yield Kind(f"four inks {bits}", many, 5, bits, _cmyk(full), tags={332: (2,)}, refused=lambda _: True)
    yield Kind("RGBA, alpha not named", rgba, 2, 8, _rgb(255, "straight"), refused=_planar)
    yield Kind("YCbCr", rgb, 6, 8, _ycbcr, tags={530: (1, 1)}, refused=_bits_reversed)


KINDS = list(_kinds())
