"""How a JPEG file is built: its segments and scans, read without decoding. What `structure` does for other formats.

Also: is it plain? Then nothing stands before its first scan that Pillow would have to interpret (EXIF, XMP, several
pictures) or might stumble over, so that the decoder in `jpeg` needs no help. Whatever is not surely so is not plain.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from service.errors import ImageTooComplex, UnsupportedImage
from service.shape import MOST_PARTS, MOST_SCANS, Shape

MOST_STRAY_BYTES = 1024  # between the segments; Pillow steps over each in Python
MOST_EXIF_BYTES = 1_000_000  # one segment holds 64 kB; thumbnails make it larger in other formats
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
    plain: bool = True

    @property
    def one_scan(self) -> bool:
        """Is the scan that has been found all of the picture?"""
        return self.kind != _PROGRESSIVE and self.scans == 1 and self.components == self.frame[5]


def measure(data: bytes) -> Shape:
    """The shape of a file that begins like a JPEG.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where it ends too early.
    """
    found = _Jpeg()
    _walk(data, found, MOST_PARTS, to_scan=False)
    return _shape(found)


def plain(data: bytes) -> Shape | None:
    """The shape of a plain file; None for all others. Raises ImageTooComplex, UnsupportedImage.

    One whose first scan is all of its picture is read no further: nothing behind that scan is ever decoded.
    """
    found, _ = _header(data, MOST_PARTS)
    if found is None:
        return None
    return _shape(found) if found.one_scan else measure(data)


def one_scan(data: bytes, most_parts: int) -> tuple[Shape, int] | None:
    """The shape of a plain file of one scan, with so many segments at most, and where the scan's data begins."""
    found, at = _header(data, most_parts)
    return (_shape(found), at) if found is not None and found.one_scan else None


def end(data: bytes, at: int) -> bool:
    """Does nothing follow the scan whose data begins here but the end of the picture?"""
    marker = _next(_AFTER_DATA, data, at)
    return marker is not None and marker[1][0] == _END


def _header(data: bytes, most_parts: int) -> tuple[_Jpeg | None, int]:
    found = _Jpeg()
    try:
        at = _walk(data, found, most_parts, to_scan=True)
    except (ImageTooComplex, UnsupportedImage, IndexError):
        return None, 0
    return (found if found.plain and found.scans else None), at


def _walk(data: bytes, found: _Jpeg, most_parts: int, *, to_scan: bool) -> int:
    """Over all of a file, or up to its first scan or what is not plain; where it ended."""
    at, parts, stray = 2, 0, 0
    while marker := _next(_AFTER_DATA if found.scans else _MARKER, data, at):
        if not found.scans and marker.start() > at:
            stray += marker.start() - at
            found.plain = False
            _bound("stray bytes before its picture", stray, MOST_STRAY_BYTES)
        parts += 1
        _bound("segments", parts, most_parts)
        kind, at = marker[1][0], marker.end()
        if kind == _END and found.scans:
            break
        if kind in _ALONE or kind == _END:
            found.plain &= found.scans > 0
        else:
            at = _segment(data, at, kind, found)
        if to_scan and (found.scans or not found.plain):
            break
    return at


def _next(marker: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes] | None:
    """A window at a time: a search lets nobody else have Python's lock, and the event loop would wait for all of it."""
    while at < len(data):
        if found := marker.search(data, at, at + WINDOW + 1):  # one byte more, for a marker on the border
            return found
        at += WINDOW
    return None


def _segment(data: bytes, at: int, kind: int, found: _Jpeg) -> int:
    """Note what one segment says; where it ends."""
    claimed = int.from_bytes(data[at : at + 2], "big")
    length = max(2, claimed)
    if not found.scans and found.plain:
        found.plain = _is_plain(data, at, kind, claimed, found)
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


def _is_plain(data: bytes, at: int, kind: int, length: int, found: _Jpeg) -> bool:
    """One segment before the first scan: whole, of a kind that needs no Pillow, and one frame before the scan."""
    if length < 2 or at + length > len(data):
        return False
    if kind in _PLAIN_IF:
        name, least = _PLAIN_IF[kind]
        return data.startswith(name, at + 2) and length >= 2 + least
    if kind in _FRAMES:
        count = data[at + 7] if length > 7 else 0
        return not found.frame and count in (1, 3, 4) and length == 8 + 3 * count and data[at + 2] == 8
    return kind in _PLAIN and (kind != _SCAN or bool(found.frame))


def _shape(found: _Jpeg) -> Shape:
    _, height, width, count = struct.unpack_from(">BHHB", found.frame)
    factors = [found.frame[7 + 3 * one] for one in range(count)]
    areas = [(factor >> 4) * (factor & 15) for factor in factors]
    most = max((factor >> 4 for factor in factors), default=1) * max((factor & 15 for factor in factors), default=1)
    coefficients = 2 * sum(areas) / max(1, most) if found.kind == _PROGRESSIVE else 0
    return Shape(width, height, (3 if count == 1 else 4) + coefficients, found.components, count if found.plain else 0)


def _bound(what: str, found: int, most: int) -> None:
    if found > most:
        raise ImageTooComplex(f"the JPEG image has more than {most} {what}; save it anew with another program")
