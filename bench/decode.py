"""Compare ways to turn JPEG bytes into the model's pixels, interleaved, over a folder of photographs.

    python -m bench.decode CORPUS --out bench/results/decode.json

`torchvision` is what torchvision's transforms do with Pillow (open, convert, resize the short side, centre crop);
`pillow` is this project's path through Pillow; `compiled` is simplejpeg and the compiled resize; `fast` the same with
scaling while decoding. Each file goes through all ways, one after the other, on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits, Decoder
from service.images.jpeg import Jpegs

LIMITS = DecodeLimits(1 << 30)
RECIPE = Preprocess(mode="friendly")
Way = Callable[[bytes], np.ndarray]


def torchvision_style(data: bytes) -> np.ndarray:
    """Resize(256, bicubic), CenterCrop(224) of a PIL image, as torchvision does them."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short, long = 256, int(256 * max(image.size) / min(image.size))
    size = (short, long) if image.width <= image.height else (long, short)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def way(jpegs: Jpegs | None) -> Way:
    """The decoder of the service, with or without the compiled resize."""

    decoder = Decoder(RECIPE, LIMITS, jpegs=jpegs)

    def decode(data: bytes) -> np.ndarray:
        out = np.empty((224, 224, 3), np.uint8)
        decoder.decode(data, out)
        return out

    return decode


def turns(ways: dict[str, Way], files: list[bytes], rounds: int) -> dict[str, list[float]]:
    """The fastest milliseconds of each file in each way."""
    times: dict[str, list[float]] = {name: [float("inf")] * len(files) for name in ways}
    for _ in range(rounds):
        for i, data in enumerate(files):
            for name, decode in ways.items():
                start = time.perf_counter()
                decode(data)
                times[name][i] = min(times[name][i], 1000 * (time.perf_counter() - start))
    return times


def compare(files: list[bytes], rounds: int) -> dict[str, Any]:
    """Medians and totals, how many times as fast as torchvision's way, and the largest difference of a pixel."""
    ways = {
        "torchvision": torchvision_style,
        "pillow": way(None),
        "compiled": way(Jpegs()),
        "fast": way(Jpegs(scale=True)),
    }
    for decode in ways.values():
        decode(files[0])
    times = turns(ways, files, rounds)
    exact = [ways["pillow"](data).astype(int) for data in files]
    return {
        "files": len(files),
        "median_ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "times_as_fast": {name: round(sum(times["torchvision"]) / sum(v), 2) for name, v in times.items()},
        "largest_difference": {
            name: int(max(np.abs(ways[name](d) - e).max() for d, e in zip(files, exact, strict=True)))
            for name in ("compiled", "fast")
        },
    }


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=400, help="files, evenly spread")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    paths = sorted(options.corpus.glob("*.jpg"))
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // options.most)]]
    result = {"date": date.today().isoformat(), "load": round(os.getloadavg()[0], 1)} | compare(files, options.rounds)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
