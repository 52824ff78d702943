"""The header of JPEG XL files: size and animation, without decoding."""

from __future__ import annotations

import struct

import pytest
from PIL import Image
from pillow_jxl import JpegXLImagePlugin

from service.errors import UnsupportedImage
from service.images.inspect_jxl import inspect
from tests.service.images.bmff_files import box
from tests.service.images.image_files import encode

assert JpegXLImagePlugin  # importing it registers the format with Pillow
SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"


class Bits:
    """Writes numbers of some bits, the lowest bit first."""

    def __init__(self) -> None:
        self.value = self.count = 0

    def put(self, value: int, count: int) -> Bits:
        """Add a number."""
        self.value |= value << self.count
        self.count += count
        return self

    def codestream(self) -> bytes:
        """A codestream that begins with these bits."""
        return b"\xff\x0a" + self.value.to_bytes(self.count // 8 + 1, "little") + bytes(20)


@pytest.mark.parametrize(
    "side",
    [(8, 8), (256, 256), (40, 16), (300, 200), (1, 1), (7, 1000), (1200, 1000), (640, 480), (1920, 1080), (600, 400)],
)
@pytest.mark.parametrize("use_container", [False, True])
def test_the_size_of_files_that_an_encoder_writes(side: tuple[int, int], use_container: bool) -> None:
    """The size is read in every encoding: in eighths, with a ratio of the sides, or plain."""
    header = inspect(encode(Image.new("L", side), "JXL", use_container=use_container, effort=1))

    assert (header.width, header.height) == side


@pytest.mark.parametrize(("ratio", "width"), [(1, 720), (2, 864), (3, 960), (4, 1080), (5, 1280), (6, 900), (7, 1440)])
def test_ratios_of_the_sides(ratio: int, width: int) -> None:
    """The seven ratios of the format give the right sides."""
    header = inspect(Bits().put(0, 1).put(1, 2).put(719, 13).put(ratio, 3).put(1, 1).codestream())

    assert (header.width, header.height) == (width, 720)


@pytest.mark.parametrize("bits", [9, 13, 18, 30])
def test_large_sides(bits: int) -> None:
    """A side may have up to 30 bits."""
    code, most = [9, 13, 18, 30].index(bits), (1 << bits) - 1
    header = inspect(Bits().put(0, 1).put(code, 2).put(most, bits).put(1, 3).put(1, 1).codestream())

    assert header.height == header.width == 1 << bits


@pytest.mark.parametrize("preview", ["none", "eighths", "plain"])
@pytest.mark.parametrize("intrinsic", [False, True])
@pytest.mark.parametrize("animated", [False, True])
def test_animations_are_found(animated: bool, intrinsic: bool, preview: str) -> None:
    """Animations are found, although the flag follows fields of different lengths."""
    bits = Bits().put(1, 1).put(3, 5).put(1, 3)  # 32 x 32
    bits.put(0, 1).put(1, 1).put(5, 3).put(intrinsic, 1)
    if intrinsic:
        bits.put(0, 1).put(0, 2).put(99, 9).put(0, 3).put(0, 2).put(49, 9)
    bits.put(preview != "none", 1)
    if preview == "eighths":
        bits.put(1, 1).put(2, 2).put(31, 5).put(0, 3).put(3, 2).put(511, 9)
    elif preview == "plain":
        bits.put(0, 1).put(1, 2).put(255, 8).put(2, 3)
    data = bits.put(animated, 1).codestream()

    if animated:
        with pytest.raises(UnsupportedImage, match="animated"):
            inspect(data)
    else:
        assert inspect(data).pixels == 32 * 32


def test_a_codestream_in_parts() -> None:
    """If a codestream is stored in parts, the header is read from the first part."""
    plain = Bits().put(1, 1).put(3, 5).put(1, 3).put(1, 1).codestream()
    data = SIGNATURE + box(b"ftyp", b"jxl ", bytes(4), b"jxl ") + box(b"jxlp", struct.pack(">I", 0), plain)

    assert inspect(data).width == 32


def test_a_container_without_a_codestream() -> None:
    """A container without a codestream is refused."""
    with pytest.raises(UnsupportedImage, match="has no codestream"):
        inspect(SIGNATURE + box(b"ftyp", b"jxl ", bytes(4), b"jxl "))


@pytest.mark.parametrize("length", [2, 3])
def test_a_cut_header(length: int) -> None:
    """A file that ends within its header is truncated."""
    with pytest.raises(IndexError):
        inspect(encode(Image.new("L", (300, 200)), "JXL")[:length])
