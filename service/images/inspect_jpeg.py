"""How a JPEG file is built: its segments and scans, read without decoding. What `structure` does for other formats.

Also: is it plain? Then nothing stands before its first scan that Pillow would have to interpret (EXIF, XMP, several
pictures) or might stumble over, so that the decoder in `jpeg` needs no help. Whatever is not surely so is not plain.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from service.errors import ImageTooComplex, UnsupportedImage
from service.images.header import MOST_PARTS, MOST_SCANS, Shape

MOST_STRAY_BYTES = 1024  # between the segments; Pillow steps over each in Python
MOST_EXIF_BYTES = 1_000_000  # one segment holds 64 kB; thumbnails make it larger in other formats
MOST_PLAIN_PARTS = 512  # a colour profile of 4 MB has 64
WINDOW = 1 << 16  # bytes searched in one go, in a fraction of a millisecond

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_DATA = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # entropy-coded data holds FF 00 and restart markers only
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
_FRAMES = {0xC0, 0xC1, 0xC2}
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_PROGRESSIVE = 0xC2
# Of no interest to Pillow, or read by it as by libjpeg: tables, comments, what other programs wrote for themselves.
_PLAIN = {_SCAN, *_FRAMES, 0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF}
_PLAIN_IF = {0xE0: (b"JFIF", 7), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 7)}  # so begun, and so long


@dataclass(slots=True)
class _Jpeg:
    """What a walk over a file found so far."""

    frame: bytes = b""
    kind: int = 0
    exif: int = 0
    scans: int = 0
    components: int = 0  # of all scans together


def measure(data: bytes) -> Shape:
    """The shape of a file that begins like a JPEG.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where it ends too early.
    """
    found = _Jpeg()
    at, parts, stray = 2, 0, 0
    while marker := _next(_AFTER_DATA if found.scans else _MARKER, data, at):
        stray += 0 if found.scans else marker.start() - at
        _bound("stray bytes before its picture", stray, MOST_STRAY_BYTES)
        parts += 1
        _bound("segments", parts, MOST_PARTS)
        kind, at = marker[1][0], marker.end()
        if kind == _END and found.scans:
            break
        if kind not in _ALONE and kind != _END:
            at = _segment(data, at, kind, found)
    return _shape(found.frame, found.kind, found.components)


def plain(data: bytes) -> Shape | None:
    """The shape of a plain file; None for all others. Raises what `measure` raises.

    One whose first scan is all of its picture is read no further: nothing behind that scan is ever decoded.
    """
    if (header := _header(data, MOST_PLAIN_PARTS)) is None:
        return None
    return header.shape if header.one_scan else replace(measure(data), plain=header.shape.plain)


def one_scan(data: bytes, most_parts: int) -> Shape | None:
    """The shape of a plain file of one scan and nothing behind it, with so many segments at most before it."""
    header = _header(data, most_parts)
    if header is None or not header.one_scan:
        return None
    marker = _next(_AFTER_DATA, data, header.at)
    return header.shape if marker is not None and marker[1][0] == _END else None


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before the data of the first scan of a plain file, and where that begins."""

    shape: Shape
    one_scan: bool
    at: int


def _header(data: bytes, most_parts: int) -> _Header | None:
    frame, kind_of_frame, at = b"", 0, 2
    for _ in range(most_parts):
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF:
            return None
        kind, length = head[1], head[2] << 8 | head[3]
        stop = at + 2 + length
        if length < 2 or stop > len(data) or not (kind in _PLAIN or _is_as_usual(data, at + 4, kind, length)):
            return None
        if kind == _SCAN:
            return _begun(frame, kind_of_frame, data[at + 4], stop) if length > 2 else None
        if kind in _FRAMES:
            if frame:
                return None
            frame, kind_of_frame = data[at + 4 : stop], kind
        at = stop
    return None


def _is_as_usual(data: bytes, at: int, kind: int, length: int) -> bool:
    name, least = _PLAIN_IF.get(kind, (b"", 1 << 16))
    return length >= 2 + least and data.startswith(name, at)


def _begun(frame: bytes, kind: int, components: int, at: int) -> _Header | None:
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3, 4) or len(frame) != 6 + 3 * frame[5]:
        return None
    return _Header(_shape(frame, kind, components, plain=frame[5]), kind != _PROGRESSIVE and components == frame[5], at)


def _next(marker: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes] | None:
    """A window at a time: a search lets nobody else have Python's lock, and the event loop would wait for all of it."""
    while at < len(data):
        if found := marker.search(data, at, at + WINDOW + 1):  # one byte more, for a marker on the border
            return found
        at += WINDOW
    return None


def _segment(data: bytes, at: int, kind: int, found: _Jpeg) -> int:
    """Note what one segment says; where it ends."""
    length = max(2, int.from_bytes(data[at : at + 2], "big"))
    if kind == _SCAN:
        found.scans += 1
        found.components += data[at + 2]
        _bound("scans", found.scans, MOST_SCANS)
    elif kind in _FRAMES and not found.frame:
        found.kind, found.frame = kind, data[at + 2 : at + length]
    elif kind in _OTHER_FRAMES:
        raise UnsupportedImage("a JPEG image with arithmetic coding or without loss is not supported")
    elif kind == _EXIF and data.startswith(b"Exif", at + 2):
        found.exif += length
        _bound("bytes of EXIF", found.exif, MOST_EXIF_BYTES)
    return at + length


def _shape(frame: bytes, kind: int, components: int, plain: int = 0) -> Shape:
    _, height, width, count = struct.unpack_from(">BHHB", frame)
    if len(frame) < 6 + 3 * count:
        raise IndexError("components")
    coefficients = 0.0
    if kind == _PROGRESSIVE:
        factors = [frame[7 + 3 * one] for one in range(count)]
        most = max((factor >> 4 for factor in factors), default=1) * max((factor & 15 for factor in factors), default=1)
        coefficients = 2 * sum((factor >> 4) * (factor & 15) for factor in factors) / max(1, most)
    return Shape(width, height, 4 + coefficients, components, plain)


def _bound(what: str, found: int, most: int) -> None:
    if found > most:
        raise ImageTooComplex(f"the JPEG image has more than {most} {what}; save it anew with another program")
