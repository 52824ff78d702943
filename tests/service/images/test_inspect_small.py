"""Which JPEG files count as small; all others, damaged ones included, do not."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.images import inspect_file, inspect_jpeg


def picture(size: tuple[int, int] = (240, 180), kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """An encoded image of soft noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(size).convert(mode).save(encoded, kind, **options)
    return encoded.getvalue()


def turned() -> Image.Exif:
    """The EXIF of a photograph that was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def segment(kind: int, body: bytes) -> bytes:
    """A segment of a JPEG file with its marker and length."""
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


def claiming(width: int, height: int) -> bytes:
    """A small file whose header claims another size."""
    data = picture((200, 200))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"subsampling": 0},
        {"subsampling": 2},
        {"restart_marker_rows": 1},
        {"comment": b"by hand"},
        {"keep_rgb": True},
        {"icc_profile": b"colours of a screen"},
        {"size": (320, 320), "quality": 30},
        {"size": (1, 1)},
    ],
    ids=str,
)
def test_small_files_have_the_header_of_the_whole_file(options: dict[str, Any]) -> None:
    """Small files in colour or grey, with any subsampling, a comment or a profile have the usual header."""
    data = picture(**options)
    found = inspect_jpeg.inspect_small(data)

    assert found is not None
    assert inspect_file.inspect("JPEG", data) == replace(found, plain_components=0, profile=b"")


@pytest.mark.parametrize(
    "data",
    [
        picture(progressive=True),
        picture(mode="CMYK"),
        picture(exif=turned()),
        picture((321, 320), quality=30),
        picture((2000, 40), quality=30),
        picture(kind="PNG"),
        picture(kind="GIF"),
        picture(kind="MPO", save_all=True, append_images=[Image.new("RGB", (240, 180))]),
        picture(comment=b"x" * 40_000),
        claiming(60_000, 60_000),
        claiming(0, 200),
        claiming(200, 0),
        picture()[:300],
        picture()[:-2],
        picture()[:2],
        b"",
        picture()[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0") + picture()[2:],
        picture()[:2] + segment(0xE2, b"MPF\0") + picture()[2:],
        picture()[:2] + segment(0xEE, b"Adobe") + picture()[2:],
        picture()[:2] + segment(0xE0, b"JFIF") + picture()[2:],
        picture()[:2] + segment(0xE2, b"ICC_PROFILE\0") + picture()[2:],
        picture()[:2] + segment(0xFE, b"") * inspect_jpeg.MAX_SMALL_SEGMENTS + picture()[2:],
        picture()[:2] + b"stray" + picture()[2:],
        picture()[:2] + segment(0xC0, b"\x08\0\x08\0\x08\x01\x01\x11\0") + picture()[2:],
        picture()[:-2] + segment(0xDA, b"\x03\x01\0\x02\x11\x03\x11\0\x3f\0") + picture()[-2:],
    ],
    ids=[
        *("progressive", "CMYK", "EXIF", "many pixels", "long", "PNG", "GIF", "several pictures", "many bytes"),
        *("claims 3,600 megapixels", "no width", "no height", "cut in the header", "no end", "start alone", "nothing"),
        *(
            "XMP",
            "MPF",
            "short Adobe",
            "short JFIF",
            "short ICC",
            "many segments",
            "stray bytes",
            "two frames",
            "two scans",
        ),
    ],
)
def test_all_others_are_not_small(data: bytes) -> None:
    """Any other file is not small: a thread decodes it and reports what is wrong."""
    assert inspect_jpeg.inspect_small(data) is None


def test_scans_one_component_at_a_time_are_not_small() -> None:
    """A baseline file whose first scan has fewer components than its frame has more scans, so it is not small."""
    data = picture()
    at = data.index(b"\xff\xda") + 4

    assert inspect_jpeg.inspect_small(data[:at] + b"\x01" + data[at + 1 :]) is None
