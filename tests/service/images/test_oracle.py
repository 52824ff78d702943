"""The pixels that the service decodes are compared with those of other decoders and with the samples in the file.

| Files                       | Asked                                   | Why                                      |
| --------------------------- | --------------------------------------- | ---------------------------------------- |
| TIFF of every layout        | the samples that were written; tifffile | ImageMagick uses libtiff, as Pillow does |
| PNG of every kind           | the samples that were written;          | it reads libpng's rows itself            |
|                             | ImageMagick                             |                                          |
| JPEG, WebP, GIF, TIFF (fax) | ImageMagick                             | what most programs show                  |
| orientations                | the picture, turned by numpy            | ImageMagick 6 turns JPEG only            |
| BMP, smaller first frames   | Chromium                                | it shows alpha and an empty canvas       |

The picture is 40 x 24 and keeps its size, so that pixels are compared and not their resized mean. Every pixel must be
equal within `levels`, or the file is refused with 415 where a `refused` in `oracle_tiff` says so.

Left out, each for its reason: LAB (its colours depend on the profile); YCbCr TIFF with LZW or planes and subsampling
(no other decoder here reads it); gaps in run lengths of a BMP (undefined: browsers show them clear, Windows in colour
0); masks without BITFIELDS, and masks that are all 0 (decoders disagree); an APNG whose first frame is smaller than the
canvas (against the standard: Chromium shows noise; `test_corrections` has the rule); signed values below 0.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import UnsupportedImage
from service.images.decode import DecodeLimits, Decoder
from service.images.formats import sniff
from tests.service.images import oracle_kinds, oracle_tiff
from tests.service.images.oracle_files import HEIGHT, WIDTH, Values
from tests.service.images.oracle_kinds import File

WHOLE = Decoder(Preprocess(32, mode="friendly"), DecodeLimits(100_000))  # images keep their size up to 32
EVERY = 5  # layout of a kind, because tifffile takes some milliseconds
LEVELS = 3  # Pillow keeps the high byte of 16-bit colours, and of 16-bit alpha
TURNS: dict[int, Callable[[Values], Values]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: np.rot90(shown, -1),
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: np.rot90(shown),
}
NOT_CHROMIUM = (
    "alpha 0",  # Windows, Firefox and older Chromium show such bitmaps opaque; Chromium 156 shows nothing
    "static picture",  # Chromium shows the animation; for programs that do not, the standard has the static picture
)
LOSSLESS = [*oracle_kinds.pngs(), *oracle_kinds.photographs(), *oracle_kinds.bitmaps(), *oracle_kinds.turned()]
LOSSLESS = [file for file in [*LOSSLESS, *oracle_kinds.animations()] if file.shown is not None]
FOR_MAGICK = [*oracle_kinds.pngs(), *oracle_kinds.photographs()]
FOR_CHROMIUM = [
    file
    for file in [*oracle_kinds.bitmaps(), *oracle_kinds.animations()]
    if not any(word in file.name for word in NOT_CHROMIUM)
]


def served(data: bytes, orientation: int = 1) -> Values:
    """The pixels of the file as the service decodes them."""
    out = np.zeros((WIDTH, HEIGHT, 3) if orientation > 4 else (HEIGHT, WIDTH, 3), np.uint8)
    WHOLE.decode(data, out)
    return out.astype(int)


def difference(file: File, shown: Values) -> str:
    """The differences between the decoded and the expected picture; empty if they are equal within `levels`."""
    found = abs(served(file.data, file.orientation) - shown)
    return "" if found.max() <= file.levels else f"{file.name}: {found.max():.0f} levels, {found.mean():.1f} on average"


@pytest.mark.parametrize("kind", oracle_tiff.KINDS, ids=lambda kind: kind.name)
def test_every_layout_of_a_tiff(kind: oracle_tiff.Kind) -> None:
    """Byte order, compression, planes, tiles, predictor, bit order and orientation do not change the picture."""
    wrong = []
    for layout in kind.layouts():
        expected = TURNS[layout.orientation](kind.shown(kind.samples))
        try:
            found = float(abs(served(oracle_tiff.write(kind, layout), layout.orientation) - expected).max())
        except UnsupportedImage:
            found = 0 if kind.refused(layout) else math.inf
        if found > LEVELS:
            wrong.append((layout, found))

    assert not wrong


def test_tifffile_reads_the_same_samples() -> None:
    """Another decoder reads the expected numbers from the files of `oracle_tiff`."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile, of the dev extra, reads TIFF independently")
    alone = importlib.util.find_spec("imagecodecs") is None  # then tifffile reads less
    compressions = {oracle_tiff.NONE, oracle_tiff.DEFLATE} if alone else set(oracle_tiff.COMPRESSIONS)
    kinds = [kind for kind in oracle_tiff.KINDS if not alone or kind.bits in (8, 16, 32)]
    for kind in kinds:
        for layout in list(kind.layouts())[::EVERY]:
            known = layout.compression in compressions and not (alone and layout.predictor == 3)
            if known and layout.orientation == 1:
                with tifffile.TiffFile(io.BytesIO(oracle_tiff.write(kind, layout))) as file:
                    found = file.pages[0].asarray()
                planes_last = np.moveaxis(found, 0, -1) if layout.planar and kind.samples.shape[2] > 1 else found
                np.testing.assert_array_equal(
                    planes_last.reshape(kind.samples.shape), kind.samples, str((kind, layout))
                )


@pytest.mark.parametrize("file", LOSSLESS, ids=lambda file: file.name)
def test_what_was_written_is_served(file: File) -> None:
    """A lossless file gives the pixels that it was made of, on white, upright."""
    assert file.shown is not None
    assert difference(file, TURNS[file.orientation](file.shown)) == ""


def test_imagemagick_agrees(tmp_path: Path) -> None:
    """ImageMagick shows the same pixels for ordinary files of every format."""
    program = shutil.which("magick") or shutil.which("convert")
    if program is None or b"ImageMagick" not in subprocess.run([program, "-version"], capture_output=True).stdout:
        pytest.skip("needs ImageMagick (`apt-get install imagemagick`)")
    names = saved(FOR_MAGICK, tmp_path)
    command = [program, *(f"{name}[0]" for name in names), "-background", "white", "-alpha", "remove"]
    done = subprocess.run([*command, "-depth", "8", "rgb:-"], capture_output=True, check=True, timeout=60)
    shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3).astype(int)

    assert len(shown) == len(FOR_MAGICK)
    assert [text for file, one in zip(FOR_MAGICK, shown, strict=True) if (text := difference(file, one))] == []


def test_chromium_agrees(tmp_path: Path) -> None:
    """A browser shows the same pixels for bitmaps, and for animations at their start."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (`apt-get install chromium`)")
    shown = photographed(program, FOR_CHROMIUM, tmp_path)

    assert [text for file, one in zip(FOR_CHROMIUM, shown, strict=True) if (text := difference(file, one))] == []


def saved(files: Sequence[File], folder: Path) -> list[Path]:
    """The files in a folder, with the extension that their bytes say."""
    names = [folder / f"{number}.{str(sniff(file.data)).lower()}" for number, file in enumerate(files)]
    for name, file in zip(names, files, strict=True):
        name.write_bytes(file.data)
    return names


def photographed(program: str, files: Sequence[File], folder: Path) -> list[Any]:
    """What a browser shows for each file, on white."""
    across = 20
    page = '<body style="margin:0;background:#fff">'
    for number, file in enumerate(files):
        left, top = number % across * WIDTH, number // across * HEIGHT
        source = f"data:image/{str(sniff(file.data)).lower()};base64,{base64.b64encode(file.data).decode()}"
        page += f'<img style="position:absolute;left:{left}px;top:{top}px" src="{source}">'
    (folder / "page.html").write_text(page)
    options = ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "force-color-profile=srgb")
    picture = folder / "shown.png"
    size = f"window-size={across * WIDTH},{max(600, (len(files) // across + 1) * HEIGHT)}"
    values = (size, f"screenshot={picture}", f"user-data-dir={folder / 'profile'}")
    command = [program, *(f"--{option}" for option in (*options, *values)), str(folder / "page.html")]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    return [
        shown[number // across * HEIGHT :, number % across * WIDTH :][:HEIGHT, :WIDTH] for number in range(len(files))
    ]
