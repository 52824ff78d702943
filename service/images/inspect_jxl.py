"""Read the header of a JPEG XL file without decoding it: its size, and whether it is animated.

Source: ISO/IEC 18181-1 (the codestream's SizeHeader and ImageMetadata) and 18181-2 (the container).
"""

from __future__ import annotations

from service.images.formats import unsupported
from service.images.header import Header
from service.images.inspect_bmff import boxes

# Bytes for each pixel. Measured: 7.9 (usual), 16.8 (lossless), 23.6 (lossy in modular coding).
_BYTES_PER_PIXEL = 24.0
_SIGNATURE = b"\xff\x0a"
_HEADER_BYTES = 64  # of the codestream, more than size and metadata take
_SIZE_BITS = (9, 13, 18, 30)
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width to height
_PREVIEW_BITS, _PREVIEW_EIGHTH_BITS = (6, 8, 10, 12), (0, 0, 5, 9)


def inspect(data: bytes) -> Header:
    """Read the size. Raises UnsupportedImage; IndexError where the file ends too early."""
    codestream = _codestream(data)
    if not codestream.startswith(_SIGNATURE):
        raise unsupported("the JPEG XL image has no codestream")
    bits = _Bits(codestream[len(_SIGNATURE) :])
    width, height = _size(bits)
    if _is_animated(bits):  # the decoder would return the last picture
        raise unsupported("an animated JPEG XL image is not supported")
    return Header(width, height, _BYTES_PER_PIXEL)


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, which is the file itself or in boxes of a container."""
    if data.startswith(_SIGNATURE):
        return data[:_HEADER_BYTES]
    for box in boxes(data, 0, len(data)):
        if box.kind in (b"jxlc", b"jxlp"):
            start = box.start + (4 if box.kind == b"jxlp" else 0)  # the number of the part
            return data[start : min(box.end, start + _HEADER_BYTES)]
    return b""


class _Bits:
    """Reads numbers of some bits, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value


def _size(bits: _Bits) -> tuple[int, int]:
    eighths = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if eighths else 1 + bits.take(_SIZE_BITS[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio]
    return height * across // down, height


def _is_animated(bits: _Bits) -> bool:
    if bits.take(1) or not bits.take(1):  # all fields have their default, or these have
        return False
    bits.take(3)  # orientation
    if bits.take(1):  # intrinsic size
        _size(bits)
    if bits.take(1):
        _skip_preview(bits)
    return bool(bits.take(1))


def _skip_preview(bits: _Bits) -> None:
    sizes = _PREVIEW_EIGHTH_BITS if bits.take(1) else _PREVIEW_BITS
    bits.take(sizes[bits.take(2)])
    if not bits.take(3):  # no ratio of the sides
        bits.take(sizes[bits.take(2)])
