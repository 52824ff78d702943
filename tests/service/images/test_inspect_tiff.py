"""Reading the first directory of a TIFF: what it claims, and which claims are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from model.preprocessing.recipe import Preprocess
from service.errors import ImageTooComplex, UnsupportedImage
from service.images.decode import DecodeLimits, Decoder
from service.images.inspect_tiff import MAX_TAGS, inspect
from tests.service.images import slow_files
from tests.service.images.image_files import encode, photo, tiff_tile


@pytest.mark.parametrize("form", ["TIFF"])
@pytest.mark.parametrize("big", [False, True])
def test_both_kinds_of_tiff_are_read(form: str, big: bool) -> None:
    """Classic TIFF and BigTIFF are read, with offsets of 4 and of 8 bytes."""
    header = inspect(encode(photo(), form, big_tiff=big))

    assert (64, 48) == (header.width, header.height)


def test_tiles_count_whole() -> None:
    """A picture of 16 x 16 in one tile of 20,000 x 20,000 counts as large as its tile."""
    assert 20_000 * 20_000 == inspect(tiff_tile()).pixels


def test_strips_that_lie_over_each_other_are_refused() -> None:
    """Overlapping strips are refused: each would be copied, and 16,000 strips of the same 20 MB are 320 GB."""
    for compression, bit_order in ((8, 1), (8, 2), (1, 2)):
        with pytest.raises(ImageTooComplex, match="larger than the file"):
            inspect(slow_files.tiff_overlapping(3000, compression, bit_order))
    assert 3000 == inspect(slow_files.tiff_overlapping(3000, 1)).height  # read in place, without a copy


def test_a_strip_beyond_the_end_is_a_truncated_file() -> None:
    """A strip past the end of the file means a truncated file, as after an interrupted upload."""
    with pytest.raises(struct.error):
        inspect(slow_files.tiff_overlapping(300)[:-4000])


def test_values_beyond_the_end_are_skipped_as_pillow_does() -> None:
    """A wrong pointer to the bits of a sample is skipped, and the size is still read."""
    tags = {256: (8,), 257: (8,), 258: (8, 8, 8), 262: (2,), 273: (8,), 277: (3,), 279: (64,)}
    data = slow_files.tiff_directory(tags, bytes(200))
    pointer = data.index(struct.pack("<HHI", 258, 4, 3)) + 8
    damaged = data[:pointer] + struct.pack("<I", 1 << 30) + data[pointer + 4 :]

    assert 64 == inspect(damaged).pixels


def test_an_offset_that_no_file_has_is_a_truncated_file() -> None:
    """An offset beyond any file is reported as a truncated image, not as an unforeseen exception."""
    data = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 1 << 63)
    with pytest.raises(UnsupportedImage, match="truncated"):
        Decoder(Preprocess(40), DecodeLimits(max_pixels=1000)).decode(data, np.zeros((40, 40, 3), np.uint8))


def test_tags_are_bounded() -> None:
    """A BigTIFF that claims too many tags is refused, since Pillow would read every one."""
    with pytest.raises(ImageTooComplex, match=f"more than {MAX_TAGS} tags"):
        inspect(slow_files.bigtiff_tags(MAX_TAGS + 1))


def test_a_damaged_pointer_to_metadata_is_no_reason_to_refuse() -> None:
    """A pointer to EXIF past the end of the file is ignored, as Pillow does."""
    tags = {256: (8,), 257: (8,), 258: (8,), 262: (1,), 273: (8,), 279: (64,), 34665: (1 << 30,)}

    assert (8, 8) == (inspect(slow_files.tiff_directory(tags, bytes(100))).width, 8)


def test_progressive_jpeg_inside_counts_as_a_hundred_scans() -> None:
    """Progressive JPEG data in strips counts as a hundred scans of three components; baseline data as one scan."""
    baseline = encode(photo().resize((256, 256)), "TIFF", compression="jpeg")

    assert 1 == inspect(baseline).scans
    assert 300 == inspect(baseline + b"\xff\xc2").scans
    assert 1 == inspect(encode(photo(), "TIFF") + b"\xff\xc2").scans
