"""What an image file says about itself before it is decoded, and the limits that all formats share. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MAX_PARTS = 65_536  # chunks, segments, blocks, strips: a usual file of 100 megapixels with small parts has 20,000
MAX_SCANS = 100
# Components of all scans times pixels. libjpeg visits every block in every scan: 0.8 ns for a pixel and component.
# A usual progressive JPEG has 14 (10 scans), so 30 for an image of 100 megapixels is ample.
MAX_SCAN_PIXELS = 3_000_000_000
# For each row Pillow has a pointer, and fills up to 4 bytes: in a thin image that is more than its pixels.
ROW_BYTES = 12
# Bytes of a PNG before its filters are undone: up to 8 ns for each (Paeth). 100 megapixels of RGBA have 400 MB, and so
# have 50 megapixels of RGBA with 16 bits.
MAX_PACKED_BYTES = 500_000_000


class Cicp(NamedTuple):
    """A colour space by the code points of ITU-T H.273."""

    primaries: int
    transfer: int


@dataclass(frozen=True, slots=True)
class Header:
    """The size that a file claims, and what decoding costs: memory in bytes per pixel, and visits to each pixel."""

    width: int
    height: int
    bytes_per_pixel: float
    scans: int = 1  # of a JPEG: components of all its scans together
    plain_components: int = 0  # components of a JPEG that is decoded without Pillow; 0: any other file
    profile: bytes = b""  # the ICC profile of a JPEG that is decoded without Pillow
    packed_bytes: float = 0  # for each pixel, of a PNG: interlaced ones count a quarter more
    cicp: Cicp | None = None  # the colour space that counts before an ICC profile of the same file

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def memory_bytes(self) -> int:
        """The most memory that decoding takes."""
        return int(self.width * self.height * self.bytes_per_pixel) + ROW_BYTES * self.height

    @property
    def only_once(self) -> bool:
        """True when a JPEG takes so long that it must not be decoded again by Pillow after a warning of libjpeg."""
        return self.scans * self.pixels > MAX_SCAN_PIXELS // 2
