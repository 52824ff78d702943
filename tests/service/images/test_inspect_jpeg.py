"""Which JPEG files are plain, and that Pillow and the decoder of plain files give the same answers."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import ImageTooComplex, ServiceError
from service.images import inspect_file, inspect_jpeg
from service.images.decode import DecodeLimits, Decoder
from service.images.jpeg import Jpegs
from tests.service.images import slow_files
from tests.service.images.image_files import encode, photo

JPEGS = Jpegs()
RECIPE = Preprocess(40, mode="friendly")
LIMITS = DecodeLimits(1_000_000)


def turned() -> Image.Exif:
    """The EXIF of a photograph that was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


GOOD = {
    "baseline": encode(photo(), "JPEG"),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "grey": encode(photo("L"), "JPEG"),
    "grey, progressive": encode(photo("L"), "JPEG", progressive=True),
    "four inks": encode(photo("CMYK"), "JPEG"),
    "Adobe": encode(photo(), "JPEG", keep_rgb=True),
    "with a profile": encode(photo(), "JPEG", icc_profile=b"colours of a screen"),
    "with a comment and restarts": encode(photo(), "JPEG", comment=b"by hand", restart_marker_rows=1),
}
SEGMENTS = {
    "EXIF": b"\xff\xe1\x00\x10Exif\0\0MM\0\x2a\0\0\0\x08",
    "XMP": b"\xff\xe1\x00\x1fhttp://ns.adobe.com/xap/1.0/\0",
    "several pictures": b"\xff\xe2\x00\x06MPF\0",
    "Photoshop's": b"\xff\xed\x00\x10Photoshop 3.0\0",
    "a short JFIF": b"\xff\xe0\x00\x06JFIF",
    "a short profile": b"\xff\xe2\x00\x0eICC_PROFILE\0",
    "a short Adobe": b"\xff\xee\x00\x07Adobe",
    "another frame": b"\xff\xc0\x00\x0b\x08\0\x50\0\x50\x01\x01\x11\x00",
    "fill": b"\xff",
    "stray bytes": b"abc",
    "a restart": b"\xff\xd0",
    "an end": b"\xff\xd9",
    "a length of nothing": b"\xff\xec\x00\x00",
    "more than the file": b"\xff\xec\xff\xff",
    "a scan": b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00",
}


def answer(data: bytes, jpegs: Jpegs | None) -> bytes | str:
    """The pixels of a file, or the text of its refusal."""
    out = np.zeros((RECIPE.size, RECIPE.size, 3), np.uint8)
    try:
        Decoder(RECIPE, LIMITS, jpegs=jpegs).decode(data, out)
    except ServiceError as error:
        return f"{type(error).__name__}: {error.detail}"
    return out.tobytes()


@pytest.mark.parametrize("name", GOOD)
def test_usual_files_are_plain(name: str) -> None:
    """Usual files are plain, and have the header that reading the whole file gives."""
    data = GOOD[name]
    header = inspect_jpeg.inspect_plain(data)

    assert header is not None
    assert replace(header, plain_components=0, profile=b"") == inspect_file.inspect("JPEG", data)
    assert header.plain_components == {"grey": 1, "grey, progressive": 1, "four inks": 4}.get(name, 3)


@pytest.mark.parametrize("name", SEGMENTS)
def test_files_with_more_before_the_picture_are_not_plain(name: str) -> None:
    """A file with another segment before its picture is not plain, and Pillow decides about it."""
    data = GOOD["baseline"][:2] + SEGMENTS[name] + GOOD["baseline"][2:]

    assert inspect_jpeg.inspect_plain(data) is None
    assert answer(data, None) == answer(data, JPEGS)


def test_orientation_is_still_applied() -> None:
    """Pillow opens a file with EXIF, so its orientation is applied."""
    data = encode(photo(), "JPEG", exif=turned())

    assert inspect_jpeg.inspect_plain(data) is None
    assert answer(data, JPEGS) == answer(data, None) != answer(encode(photo(), "JPEG"), JPEGS)


def test_a_file_of_one_scan_is_read_no_further() -> None:
    """Data after the only scan is not inspected; the scans and segments of a progressive file are limited."""
    behind = b"\xff\xec\x00\x02" * 70_000
    plain, progressive = (GOOD[name][:-2] + behind + b"\xff\xd9" for name in ("baseline", "progressive"))

    assert inspect_jpeg.inspect_plain(plain) is not None
    with pytest.raises(ImageTooComplex):
        inspect_jpeg.inspect_plain(progressive)
    with pytest.raises(ImageTooComplex):
        inspect_jpeg.inspect_plain(slow_files.jpeg_scans(101))


def test_scans_behind_a_picture_of_one_scan_are_never_decoded() -> None:
    """Scans after a complete picture are limited like all scans; libjpeg rejects them, so Pillow's path decides."""
    scan = GOOD["baseline"][GOOD["baseline"].index(b"\xff\xda") : -2]
    few, many = (GOOD["baseline"][:-2] + scan * more + b"\xff\xd9" for more in (3, 101))

    assert answer(few, JPEGS) == answer(few, None)
    assert answer(many, JPEGS) == answer(many, None)
    assert "100 scans" in str(answer(many, JPEGS))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_have_one_answer(seed: int) -> None:
    """A damaged file gives the same pixels or the same refusal with the JPEG decoder and without it."""
    rng = random.Random(seed)
    for _ in range(300):
        data = bytearray(rng.choice([*GOOD.values()]))
        for _ in range(rng.choice([1, 2, 4])):
            at = rng.randrange(min(len(data), rng.choice([30, 200, 700, len(data)])))
            data[at : at + 1] = rng.choice([b"", bytes([rng.randrange(256)]), b"\xff", b"\0", rng.randbytes(4)])
        where = data.find(rng.choice([b"\xff\xdb", b"\xff\xc4", b"\xff\xda"]))
        if where > 0 and rng.random() < 0.3:
            data[where:where] = rng.choice([*SEGMENTS.values()])
        assert answer(bytes(data), None) == answer(bytes(data), JPEGS)
