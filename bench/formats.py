"""Time and memory of decoding AVIF, HEIC and JPEG XL files, each in a new decoder process.

    python -m bench.formats                 # expensive files of 12 megapixels, made by this program
    python -m bench.formats FILE ...        # these files
    python -m bench.formats --out bench/results/formats.json

HEIC cannot be encoded here: a grid repeats the coded tile of a file that the tests have. `header` is the memory that
the service reserves for a file, by the size that the file claims; the kernel allows that and a little more.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from pillow_jxl import JpegXLImagePlugin

from model.preprocessing.recipe import Preprocess
from service.images import inspect_file
from service.images.decode import DecodeLimits, Decoder
from service.images.formats import accepted_format
from service.images.isolated.process import DecoderProcesses
from tests.service.images.bmff_files import coded, grid, sample

assert JpegXLImagePlugin  # importing it registers the format with Pillow
RECIPE = Preprocess(mode="friendly")
LIMITS = DecodeLimits(1 << 30, 1 << 40)
SIZE = (4000, 3000)


@dataclass(frozen=True, slots=True)
class Row:
    """The cost of decoding one file. Memory is in bytes of address space per pixel, because the kernel limits that."""

    file: str
    megapixels: float
    kilobytes: int
    seconds: float
    nanoseconds_per_pixel: float
    memory_per_pixel: float
    header_per_pixel: float


def noisy(mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise, like a photograph in the dark; noise takes longest."""
    chance = np.random.default_rng(0)
    coarse = Image.fromarray(chance.integers(0, 256, (SIZE[1] // 16, SIZE[0] // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    noise = chance.integers(-20, 21, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
    if mode == "RGBA":
        image.putalpha(image.getchannel(0))
    return image


def made_here() -> Iterator[tuple[str, bytes]]:
    """Make files of all three formats."""
    tile = coded(sample("plain.heic"))
    yield "HEIC, 961 tiles", grid(tile, 31, 31)
    yield "HEIC, 100 tiles", grid(tile, 10, 10)
    for name, mode, form, options in (
        ("AVIF 4:2:0", "RGB", "AVIF", {"speed": 9}),
        ("AVIF 4:4:4", "RGB", "AVIF", {"speed": 9, "quality": 90, "subsampling": "4:4:4"}),
        ("AVIF with alpha", "RGBA", "AVIF", {"speed": 9}),
        ("JPEG XL", "RGB", "JXL", {"effort": 3}),
        ("JPEG XL with alpha", "RGBA", "JXL", {"effort": 3}),
        ("JPEG XL lossless", "RGB", "JXL", {"effort": 3, "lossless": True}),
    ):
        stream = io.BytesIO()
        noisy(mode).save(stream, form, **options)
        yield name, stream.getvalue()


def measure(name: str, data: bytes) -> Row:
    """Decode a file in a new process."""
    processes = DecoderProcesses(patience_s=120)
    decoder = Decoder(RECIPE, LIMITS, isolated=processes)
    out = np.zeros((RECIPE.size, RECIPE.size, 3), np.uint8)
    try:
        decoder.decode(sample("plain.heic"), out)  # starts the process
        (process,) = psutil.Process().children()
        before = process.memory_info().vms
        start = time.perf_counter()
        decoder.decode(data, out)
        seconds = time.perf_counter() - start
        peak = _peak(process.pid)
    finally:
        processes.close()
    header = inspect_file.inspect(accepted_format(data), data)
    per_pixel = 1 / header.pixels
    return Row(
        name,
        round(header.pixels / 1e6, 1),
        len(data) // 1000,
        round(seconds, 2),
        round(1e9 * seconds * per_pixel, 1),
        round((peak - before) * per_pixel, 1),
        round(header.memory_bytes * per_pixel, 1),
    )


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak:"))


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files = [(path.name, path.read_bytes()) for path in options.files] or made_here()
    rows = [measure(name, data) for name, data in files]
    for row in rows:
        print(
            f"{row.file:24}{row.megapixels:7} MP{row.kilobytes:8} kB{row.seconds:7} s"
            f"{row.nanoseconds_per_pixel:8} ns/px{row.memory_per_pixel:7} B/px, reserved {row.header_per_pixel}"
        )
    if options.out:
        result: dict[str, Any] = {"date": date.today().isoformat(), "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
