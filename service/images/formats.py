"""Finds the image format by the first bytes of a file, and lists the accepted formats."""

from __future__ import annotations

import importlib.util
import re

from service.errors import EmptyBody, UnsupportedImage

# Formats that are decoded in a separate process -> the module that decodes them, which may not be installed.
ISOLATED = {"AVIF": "PIL._avif", "HEIC": "pi_heif", "JPEG XL": "pillow_jxl"}
ACCEPTED = (
    *("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"),
    *(name for name, module in ISOLATED.items() if importlib.util.find_spec(module)),
)
PILLOW_NAMES = {"HEIC": "HEIF", "JPEG XL": "JXL"}  # names that differ in more than upper case

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II\x2a\x00": "TIFF",
    b"MM\x00\x2a": "TIFF",
    b"II\x2b\x00": "TIFF",
    b"MM\x00\x2b": "TIFF",
    b"%PDF-": "PDF",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
}
_SVG = re.compile(rb"(\xef\xbb\xbf)?\s*<(svg|(\?xml|!--|!DOCTYPE\s+svg).*?<svg)", re.DOTALL | re.IGNORECASE)
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SNIFFED_BYTES = 1024


def sniff(data: bytes) -> str | None:
    """The image format that the first bytes announce, accepted or not; None when they announce none."""
    head = bytes(data[:_SNIFFED_BYTES])
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _iso_brand(head)
    return "SVG" if _SVG.match(head) else None


def accepted_format(data: bytes) -> str:
    """The format of a file that may be decoded. Raises EmptyBody, UnsupportedImage."""
    if not data:
        raise EmptyBody("the image has no bytes")
    name = sniff(data)
    if name is None:
        raise unsupported("the bytes are not an image of a known format")
    if name not in ACCEPTED:
        raise unsupported(f"{name} is not supported" + (" by this installation" if name in ISOLATED else ""))
    return name


def unsupported(reason: str) -> UnsupportedImage:
    """The error with its reason and the formats that are accepted."""
    return UnsupportedImage(f"{reason}; accepted formats: {', '.join(ACCEPTED)}")


def _iso_brand(head: bytes) -> str | None:
    """Find HEIC and AVIF by the first box of the file: by its major brand, or by its compatible brands."""
    end = int.from_bytes(head[:4], "big")
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, min(end, len(head)), 4))}
    return "AVIF" if brands & _AVIF else "HEIC" if brands & _HEIC else None
