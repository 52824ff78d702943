"""What an image's structure says of the cost of decoding it, and the bounds that all formats share. Values only."""

from __future__ import annotations

from dataclasses import dataclass

MOST_PARTS = 65_536  # chunks, segments, blocks, strips: a 100-megapixel file of the smallest usual ones has 20,000
MOST_SCANS = 100
# Components of all scans times pixels. libjpeg visits every block in every scan: 0.8 ns for a pixel and component.
# A usual progressive JPEG has 14 (10 scans), so 30 for one of 100 megapixels is ample.
MOST_SCAN_PIXELS = 3_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """An image's size as its header claims it, and what decoding costs: memory in bytes a pixel, visits to each."""

    width: int
    height: int
    bytes_per_pixel: float
    scans: int = 1  # of a JPEG: components of all its scans together
    plain: int = 0  # components of a JPEG that the decoder in `jpeg` needs no help with; 0: it may

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def bytes(self) -> int:
        """The most memory that decoding takes."""
        return int(self.pixels * self.bytes_per_pixel)
