"""Read the segments and scans of a JPEG file without decoding it.

A file is *plain* when nothing before its first scan needs Pillow: no EXIF, no XMP, no second picture, nothing that
Pillow may fail on. `service.images.jpeg` decodes such a file alone. A file is *small* when it is plain, has one scan,
and takes so little time that it may be decoded on the event loop. In case of doubt a file is neither, and the module
that decodes it reports what is wrong.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from service.errors import ImageTooComplex, UnsupportedImage
from service.images.header import MAX_PARTS, MAX_SCANS, Header

MAX_STRAY_BYTES = 1024  # between the segments; Pillow steps over each byte in Python
MAX_EXIF_BYTES = 1_000_000  # one segment holds 64 kB; thumbnails make it larger in other formats
MAX_PLAIN_SEGMENTS = 512  # a colour profile of 4 MB has 64
MAX_SMALL_BYTES, MAX_SMALL_PIXELS = 32_768, 102_400  # a file of half of this takes 0.4 ms, less than a thread costs
MAX_SMALL_SEGMENTS = 32
MAX_SMALL_ASPECT = 8  # a line of pixels would be resized to thousands of lines, most of which are cut off
WINDOW = 1 << 16  # bytes of one search, which takes a fraction of a millisecond


_START = b"\xff\xd8"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_DATA = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # entropy-coded data holds FF 00 and restart markers only
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SCAN, _END, _EXIF, _PROFILE = 0xDA, 0xD9, 0xE1, 0xE2
_FRAMES = {0xC0, 0xC1, 0xC2}
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_PROGRESSIVE = 0xC2
# Segments that Pillow ignores or reads as libjpeg does: tables, comments, data of other programs.
_PLAIN = {_SCAN, *_FRAMES, 0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF}
_PLAIN_IF = {0xE0: (b"JFIF", 7), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 7)}  # with this start and length


@dataclass(slots=True)
class _Found:
    """What the walk over a file has found so far."""

    frame: bytes = b""
    kind: int = 0
    exif: int = 0
    scans: int = 0
    components: int = 0  # of all scans together


class _FirstScan(NamedTuple):
    """The content of a plain file before the data of its first scan, and where that data begins."""

    header: Header
    is_only_scan: bool
    data_at: int


def inspect(data: bytes) -> Header:
    """Read the header of a file that begins like a JPEG, and all of its scans.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where the file ends too early.
    """
    found = _Found()
    at, segments, stray = 2, 0, 0
    while marker := _next(_AFTER_DATA if found.scans else _MARKER, data, at):
        stray += 0 if found.scans else marker.start() - at
        _limit("stray bytes before its picture", stray, MAX_STRAY_BYTES)
        segments += 1
        _limit("segments", segments, MAX_PARTS)
        kind, at = marker[1][0], marker.end()
        if kind == _END and found.scans:
            break
        if kind not in _WITHOUT_LENGTH and kind != _END:
            at = _read_segment(data, at, kind, found)
    return _header(found.frame, found.kind, found.components)


def inspect_plain(data: bytes) -> Header | None:
    """The header of a plain file; None for any other. Raises the errors of `inspect`.

    A file whose first scan holds the whole picture is not read further: nothing after that scan is ever decoded.
    """
    first = _first_scan(data, MAX_PLAIN_SEGMENTS)
    if first is None:
        return None
    if first.is_only_scan:
        return first.header
    return replace(inspect(data), plain_components=first.header.plain_components, profile=first.header.profile)


def inspect_small(data: bytes) -> Header | None:
    """The header of a small file; None for any other. Takes some microseconds for any bytes."""
    if len(data) > MAX_SMALL_BYTES or not data.startswith(_START):
        return None
    first = _first_scan(data, MAX_SMALL_SEGMENTS)
    if first is None or not first.is_only_scan:
        return None
    header = first.header
    width, height = header.width, header.height
    if not 0 < width * height <= MAX_SMALL_PIXELS or header.plain_components == 4:
        return None
    if max(width, height) > MAX_SMALL_ASPECT * min(width, height):
        return None
    marker = _next(_AFTER_DATA, data, first.data_at)
    return header if marker is not None and marker[1][0] == _END else None


def _first_scan(data: bytes, max_segments: int) -> _FirstScan | None:
    frame, kind_of_frame, at = b"", 0, 2
    profile: list[bytes] = []
    for _ in range(max_segments):
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF:
            return None
        kind, length = head[1], head[2] << 8 | head[3]
        stop = at + 2 + length
        if length < 2 or stop > len(data) or not (kind in _PLAIN or _is_plain(data, at + 4, kind, length)):
            return None
        if kind == _SCAN:
            return _begin_scan(frame, kind_of_frame, data[at + 4], stop, profile) if length > 2 else None
        if kind in _FRAMES:
            if frame:
                return None
            frame, kind_of_frame = data[at + 4 : stop], kind
        elif kind == _PROFILE:
            profile.append(data[at + 16 : stop])  # number, count, content
        at = stop
    return None


def _is_plain(data: bytes, at: int, kind: int, length: int) -> bool:
    start, least = _PLAIN_IF.get(kind, (b"", 1 << 16))
    return length >= 2 + least and data.startswith(start, at)


def _begin_scan(frame: bytes, kind: int, components: int, at: int, profile: list[bytes]) -> _FirstScan | None:
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3, 4) or len(frame) != 6 + 3 * frame[5]:
        return None
    header = _header(frame, kind, components, frame[5], _joined(profile))
    return _FirstScan(header, kind != _PROGRESSIVE and components == frame[5], at)


def _joined(profile: list[bytes]) -> bytes:
    """The parts of an ICC profile, each after its number and their count, in order; empty if one is missing."""
    parts = sorted(profile)
    return b"".join(part[2:] for part in parts) if parts and parts[0][1] == len(parts) else b""


def _next(marker: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes] | None:
    """Search in windows: a search holds Python's lock, and the event loop would wait for its end."""
    while at < len(data):
        if found := marker.search(data, at, at + WINDOW + 1):  # one byte more, for a marker on the border
            return found
        at += WINDOW
    return None


def _read_segment(data: bytes, at: int, kind: int, found: _Found) -> int:
    """Record the content of one segment; return where it ends."""
    length = max(2, int.from_bytes(data[at : at + 2], "big"))
    if kind == _SCAN:
        found.scans += 1
        found.components += data[at + 2]
        _limit("scans", found.scans, MAX_SCANS)
    elif kind in _FRAMES and not found.frame:
        found.kind, found.frame = kind, data[at + 2 : at + length]
    elif kind in _OTHER_FRAMES:
        raise UnsupportedImage("a JPEG image with arithmetic coding or without loss is not supported")
    elif kind == _EXIF and data.startswith(b"Exif", at + 2):
        found.exif += length
        _limit("bytes of EXIF", found.exif, MAX_EXIF_BYTES)
    return at + length


def _header(frame: bytes, kind: int, components: int, plain_components: int = 0, profile: bytes = b"") -> Header:
    _, height, width, count = struct.unpack_from(">BHHB", frame)
    if len(frame) < 6 + 3 * count:
        raise IndexError("components")
    coefficients = 0.0
    if kind == _PROGRESSIVE:
        factors = [frame[7 + 3 * one] for one in range(count)]
        most = max((factor >> 4 for factor in factors), default=1) * max((factor & 15 for factor in factors), default=1)
        coefficients = 2 * sum((factor >> 4) * (factor & 15) for factor in factors) / max(1, most)
    return Header(width, height, 4 + coefficients, components, plain_components, profile)


def _limit(what: str, found: int, most: int) -> None:
    if found > most:
        raise ImageTooComplex(f"the JPEG image has more than {most} {what}; save it again with another program")
