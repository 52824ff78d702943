"""The fast way for JPEG files gives the pixels that Pillow gives, and leaves to it what is not plain."""

from __future__ import annotations

import io
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import TooManyPixels, UnsupportedImage
from service.images import decode, inspect_file, quick_jpeg
from service.images.decode import DecodeLimits
from service.images.header import Shape
from service.images.jpeg import KEPT_BYTES, Jpegs, _let_go

JPEGS = Jpegs()
RECIPE = Preprocess(mode="friendly")
LIMITS = DecodeLimits(10**8)


def jpeg(size: tuple[int, int] = (420, 300), mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """Soft noise as a JPEG file."""
    if "turned" in options:
        exif = Image.Exif()
        exif[0x0112] = options.pop("turned")
        options["exif"] = exif
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def decoded(data: bytes, jpegs: Jpegs | None, recipe: Preprocess = RECIPE) -> np.ndarray:
    """The model's pixels by the service's own path."""
    out = np.zeros((recipe.size, recipe.size, 3), np.uint8)
    decode.decode(data, out, recipe, LIMITS, jpegs=jpegs)
    return out


def taken(data: bytes, recipe: Preprocess = RECIPE) -> bool:
    """Did the fast way do it?"""
    with Image.open(io.BytesIO(data)) as image:
        return JPEGS.pixels(data, image, recipe) is not None


@pytest.mark.parametrize("size", [(420, 300), (300, 421), (1999, 1333), (100, 80), (224, 224)])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90, "subsampling": 0},
        {"quality": 75, "subsampling": 1},
        {"quality": 60, "subsampling": 2},
        {"progressive": True},
        {"mode": "L"},
        {"mode": "L", "turned": 6},
        {"mode": "CMYK"},
        {"mode": "CMYK", "progressive": True, "subsampling": 0},
        {"mode": "CMYK", "turned": 3},
        {"keep_rgb": True},
        {"restart_marker_rows": 1},
        *({"turned": orientation} for orientation in range(2, 9)),
    ],
    ids=str,
)
def test_plain_files_are_equal_pixel_for_pixel(size: tuple[int, int], options: dict[str, Any]) -> None:
    """Whatever the subsampling, in colour or grey, baseline or progressive, turned or mirrored."""
    data = jpeg(size, **options)

    assert taken(data)
    np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))


def with_adobe(data: bytes, transform: int | None) -> bytes:
    """The file with Adobe's segment saying so, or without one."""
    at = data.index(b"\xff\xeeAdobe"[:2])
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    own = b"" if transform is None else b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return data[:at] + own + data[at + 2 + length :]


@pytest.mark.parametrize("transform", [None, 0, 2])
@pytest.mark.parametrize("size", [(420, 300), (301, 223)])
def test_inks_become_the_colours_that_pillow_makes_of_them(transform: int | None, size: tuple[int, int]) -> None:
    """Whether they are stored as such or as YCCK, and whoever wrote them."""
    data = with_adobe(jpeg(size, "CMYK"), transform)

    assert taken(data)
    np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))


def test_images_that_share_a_threads_memory_are_independent() -> None:
    """Large and small ones after each other: none shows pixels of another, and what was given does not change."""
    files = [jpeg(size, seed=seed) for seed, size in enumerate([(420, 300), (1999, 1333), (100, 80), (1500, 1200)])]
    expected = [decoded(data, None) for data in files]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda data: decoded(data, JPEGS), files * 3))
    kept = [JPEGS.plain(data, RECIPE, inspect_file.measure("JPEG", data)) for data in files]

    assert all(np.array_equal(one, two) for one, two in zip(found, expected * 3, strict=True))
    assert all(one is not None and np.array_equal(one[0], two) for one, two in zip(kept, expected, strict=True))


def test_many_threads_do_not_disturb_each_other() -> None:
    """Nothing that a call of compiled code reads is freed, or anybody else's, before it has ended."""
    files = [jpeg((60 + 7 * seed, 90), "CMYK" if seed % 2 else "RGB", seed) for seed in range(8)]
    expected = [decoded(data, None) for data in files]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: decoded(data, JPEGS), files * 50))

    assert all(np.array_equal(one, two) for one, two in zip(found, expected * 50, strict=True))


def test_only_whole_pages_are_given_back() -> None:
    """What lies beside the memory in its first and last page stays."""
    memory = np.full(5 * mmap.PAGESIZE, 7, np.uint8)
    within = memory[100 : 100 + 3 * mmap.PAGESIZE]

    _let_go(within)
    _let_go(memory[:50])

    assert (memory[:100] == 7).all()
    assert (memory[100 + 3 * mmap.PAGESIZE :] == 7).all()
    assert (within == 0).any() or not hasattr(mmap, "MADV_DONTNEED")


def test_what_is_not_plain_is_left_to_pillow() -> None:
    """A very long strip, a size that is not resized: same pixels, by the other way."""
    for data in (jpeg((2000, 150)), jpeg((2000, 150), turned=6)):
        assert not taken(data)
        np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))
    assert not taken(jpeg(), Preprocess(size=32))


def test_damaged_files_have_one_answer() -> None:
    """What libjpeg warns about, Pillow decides on: refused, or the same pixels."""
    data = jpeg((600, 400))
    stray = data[:1000] + b"\xff\xd5" + data[1000:]
    for damaged in (data[:-2], data[: len(data) // 2], stray):
        assert answer(damaged, None) == answer(damaged, JPEGS)


def test_a_header_cannot_make_the_decoder_write_beyond_its_memory() -> None:
    """It is given memory for the size that was read from the header, and compares that with the size it finds."""
    data = jpeg((420, 300))
    claims = Shape(8, 8, 4, 3, 3), Shape(420, 299, 4, 3, 3), Shape(300, 420, 4, 3, 3), Shape(421, 300, 4, 3, 3)
    memory = JPEGS._memory(KEPT_BYTES)
    memory[:] = 7

    assert JPEGS.plain(data, RECIPE, claims[0]) is None
    assert (memory == 7).all()
    assert [JPEGS.plain(data, RECIPE, claim) for claim in claims] == [None] * len(claims)


def answer(data: bytes, jpegs: Jpegs | None) -> bytes | str:
    """Pixels, or the refusal."""
    try:
        return decoded(data, jpegs).tobytes()
    except UnsupportedImage as error:
        return error.detail


def test_scaling_while_decoding_is_near_and_only_for_large_files() -> None:
    """Below twice the wanted size the pixels stay exact; above, few differ by much."""
    scaled = Jpegs(scale=True)
    small, large = jpeg((500, 400)), jpeg((3000, 2000))

    np.testing.assert_array_equal(decoded(small, scaled), decoded(small, None))
    difference = np.abs(decoded(large, scaled).astype(int) - decoded(large, None))
    assert 0 < difference.max()
    assert difference.mean() < 1


def test_without_a_compiler_pillow_does_it_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The service starts, and says so in its log."""
    monkeypatch.setattr(
        "model.preprocessing.compiled.resize.Resize.__init__", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
    )
    jpegs = Jpegs(tmp_path)

    np.testing.assert_array_equal(decoded(jpeg(), jpegs), decoded(jpeg(), None))


@pytest.mark.parametrize(
    "options", [{}, {"mode": "L"}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"keep_rgb": True}], ids=str
)
def test_small_files_are_equal_pixel_for_pixel_without_pillow(options: dict[str, Any]) -> None:
    """And what libjpeg warns about is still Pillow's to decide."""
    data = jpeg((240, 180), **options)
    at = data.index(b"\xff\xda")
    for file in (data, data[: at + 400] + b"\xff\xd9"):
        assert answer(file, None) == answer_at_once(file)


def answer_at_once(data: bytes) -> bytes | str:
    """The pixels of a small file by the short way, or the refusal."""
    out = np.zeros((RECIPE.size, RECIPE.size, 3), np.uint8)
    shape = quick_jpeg.measured(data)
    assert shape is not None
    try:
        decode.decode_small(data, shape, out, RECIPE, LIMITS, JPEGS)
    except UnsupportedImage as error:
        return error.detail
    return out.tobytes()


def test_limits_hold_for_small_files() -> None:
    """VIM_MAX_PIXELS may be smaller than what is small."""
    data = jpeg((240, 180))
    shape = quick_jpeg.measured(data)
    assert shape is not None
    with pytest.raises(TooManyPixels):
        decode.decode_small(data, shape, np.zeros((224, 224, 3), np.uint8), RECIPE, DecodeLimits(1000), JPEGS)


def test_quick_is_neither_what_is_not_compiled_nor_a_large_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the compiler on the event loop, nor for a resize to a large input."""
    jpegs = Jpegs()
    decoded(jpeg(), jpegs)  # waits for the compiler

    assert jpegs.quick(RECIPE)
    assert not jpegs.quick(Preprocess(size=512))
    assert not jpegs.quick(Preprocess(size=32))
    monkeypatch.setattr(
        "model.preprocessing.compiled.resize.Resize.__init__", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
    )
    assert not Jpegs().quick(RECIPE)
