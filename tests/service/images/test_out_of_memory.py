"""A good image that cannot be decoded for lack of memory is not reported as damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPARE = 1 << 20  # bytes; the image needs many times as much
HELD = 1 << 16  # bytes; larger blocks go back to the system when they are freed, so the second decoding finds none

# In a process of its own, because the limit holds for all threads of a process.
PROGRAM = """
import gc, io, resource, sys
import numpy as np
import psutil
from PIL import Image
from model.preprocessing.recipe import Preprocess
from service.errors import OutOfMemory
from service.images.decode import DecodeLimits, Decoder
from service.images.jpeg import Jpegs

name, quick = sys.argv[1], sys.argv[2] == "quick"
side = 6000 if name != "WEBP" else 4000
file = io.BytesIO()
image = Image.new("RGB", (side, side), (10, 200, 30))
if name == "pixels":
    data = np.asarray(image)
else:
    image.save(file, name)
    data = file.getvalue()
del image
out = np.zeros((40, 40, 3), np.uint8)
limits = DecodeLimits(max_pixels=100_000_000)
decoder = Decoder(Preprocess(size=40, mode="friendly"), limits, jpegs=Jpegs() if quick else None)
decoder.decode(data, out)  # imports and caches
gc.collect()
kept = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + int(sys.argv[3]), kept[1]))
try:
    decoder.decode(data, out)
    raise SystemExit("there was enough memory")
except OutOfMemory as error:
    print(error.detail)
finally:
    resource.setrlimit(resource.RLIMIT_AS, kept)
decoder.decode(data, out)
"""


@pytest.mark.parametrize(
    ("name", "decoder"),
    [(name, "pillow") for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    + [("JPEG", "quick"), ("pixels", "pillow")],
)
def test_a_good_image_is_refused_for_now(name: str, decoder: str) -> None:
    """The error says that memory is missing, and the same image is decoded when there is memory again."""
    command = [sys.executable, "-c", PROGRAM, name, decoder, str(SPARE)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(HELD)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the server has no memory for ")
    assert done.stderr.startswith("out of memory: ")
