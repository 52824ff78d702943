"""The JPEG decoder gives the same pixels as Pillow, and leaves to Pillow the files that it does not support."""

from __future__ import annotations

import dataclasses
import io
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.compiled.cmyk import CmykToRgb
from model.preprocessing.compiled.resize import Resize
from model.preprocessing.recipe import Crop, Preprocess
from service.errors import TooManyPixels, UnsupportedImage
from service.images import inspect_file, jpeg_check
from service.images.decode import DecodeLimits, Decoder
from service.images.header import Header
from service.images.jpeg import Jpegs, release_pages

JPEGS = Jpegs()
RECIPE = Preprocess(mode="friendly")
LIMITS = DecodeLimits(10**8)


def jpeg(size: tuple[int, int] = (420, 300), mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """A JPEG file of soft noise."""
    if "turned" in options:
        exif = Image.Exif()
        exif[0x0112] = options.pop("turned")
        options["exif"] = exif
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def decoded(data: bytes, jpegs: Jpegs | None, recipe: Preprocess = RECIPE) -> np.ndarray:
    """The pixels that the service computes, with the JPEG decoder or by Pillow alone."""
    out = np.zeros((recipe.size, recipe.size, 3), np.uint8)
    Decoder(recipe, LIMITS, jpegs=jpegs).decode(data, out)
    return out


def compiled_decoder(limits: DecodeLimits = LIMITS) -> Decoder:
    """A decoder whose code is compiled."""
    decoded(jpeg(), JPEGS)  # waits for the compiler
    return Decoder(RECIPE, limits, jpegs=JPEGS)


def is_supported(data: bytes, recipe: Preprocess = RECIPE) -> bool:
    """Whether the JPEG decoder decodes this file."""
    with Image.open(io.BytesIO(data)) as image:
        return JPEGS.decode_opened(data, image, recipe) is not None


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
    """Files of every subsampling, colour, kind and orientation give the pixels that Pillow gives."""
    data = jpeg(size, **options)

    assert is_supported(data)
    np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))


def with_adobe(data: bytes, transform: int | None) -> bytes:
    """The file with this transform in its Adobe segment, or without that segment."""
    at = data.index(b"\xff\xeeAdobe"[:2])
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    own = b"" if transform is None else b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return data[:at] + own + data[at + 2 + length :]


@pytest.mark.parametrize("transform", [None, 0, 2])
@pytest.mark.parametrize("size", [(420, 300), (301, 223)])
def test_cmyk_is_converted_as_pillow_does(transform: int | None, size: tuple[int, int]) -> None:
    """CMYK and YCCK files, with and without an Adobe segment, give Pillow's colours."""
    data = with_adobe(jpeg(size, "CMYK"), transform)

    assert is_supported(data)
    np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))


def test_images_that_share_a_threads_memory_are_independent() -> None:
    """Images of different sizes do not mix their pixels, and returned pixels never change."""
    files = [jpeg(size, seed=seed) for seed, size in enumerate([(420, 300), (1999, 1333), (100, 80), (1500, 1200)])]
    expected = [decoded(data, None) for data in files]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda data: decoded(data, JPEGS), files * 3))
    kept = [JPEGS.decode_plain(data, inspect_file.inspect("JPEG", data), RECIPE) for data in files]

    assert all(np.array_equal(one, two) for one, two in zip(found, expected * 3, strict=True))
    assert all(one is not None and np.array_equal(one[0], two) for one, two in zip(kept, expected, strict=True))


def test_many_threads_do_not_disturb_each_other() -> None:
    """Memory that compiled code reads is neither freed nor reused by another thread before the call ends."""
    files = [jpeg((60 + 7 * seed, 90), "CMYK" if seed % 2 else "RGB", seed) for seed in range(8)]
    expected = [decoded(data, None) for data in files]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: decoded(data, JPEGS), files * 50))

    assert all(np.array_equal(one, two) for one, two in zip(found, expected * 50, strict=True))


def test_only_whole_pages_are_given_back() -> None:
    """Bytes beside the released memory, in its first and last page, are kept."""
    memory = np.full(5 * mmap.PAGESIZE, 7, np.uint8)
    within = memory[100 : 100 + 3 * mmap.PAGESIZE]

    release_pages(within)
    release_pages(memory[:50])

    assert (memory[:100] == 7).all()
    assert (memory[100 + 3 * mmap.PAGESIZE :] == 7).all()
    assert (within == 0).any() or not hasattr(mmap, "MADV_DONTNEED")


def test_unsupported_sizes_are_left_to_pillow() -> None:
    """Pillow decodes a very long strip and an input that is not resized, with the same pixels."""
    for data in (jpeg((2000, 150)), jpeg((2000, 150), turned=6)):
        assert not is_supported(data)
        np.testing.assert_array_equal(decoded(data, JPEGS), decoded(data, None))
    assert not is_supported(jpeg(), Preprocess(size=32))


def test_damaged_files_have_one_answer() -> None:
    """Pillow decides about files that libjpeg warns about, so the answer is the same with both."""
    data = jpeg((600, 400))
    stray = data[:1000] + b"\xff\xd5" + data[1000:]
    for damaged in (data[:-2], data[: len(data) // 2], stray):
        assert answer(damaged, None) == answer(damaged, JPEGS)


@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0\0\0\0\0"}])
def test_a_slow_file_is_decoded_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow alone decodes a file of many scans: after a warning of libjpeg it would have to decode it again."""
    data = jpeg(progressive=True, **options)
    expected = decoded(data, None)
    monkeypatch.setattr("service.images.header.MAX_SCAN_PIXELS", 420 * 300)

    used: list[object] = []
    for name in ("decode_plain", "decode_opened"):
        monkeypatch.setattr(JPEGS, name, lambda *values: used.append(values))
    np.testing.assert_array_equal(decoded(data, JPEGS), expected)

    assert used == []


def test_a_header_cannot_make_the_decoder_write_beyond_its_memory() -> None:
    """A header with a wrong size is rejected, and with a too small one the memory stays untouched."""
    data = jpeg((420, 300))
    claims = [Header(*size, 4, 3, 3) for size in ((8, 8), (420, 299), (300, 420), (421, 300))]
    memory = JPEGS.memory.bytes
    memory[:] = 7

    assert JPEGS.decode_plain(data, claims[0], RECIPE) is None
    assert (memory == 7).all()
    assert [JPEGS.decode_plain(data, claim, RECIPE) for claim in claims] == [None] * len(claims)


def answer(data: bytes, jpegs: Jpegs | None) -> bytes | str:
    """The pixels of a file, or the text of its refusal."""
    try:
        return decoded(data, jpegs).tobytes()
    except UnsupportedImage as error:
        return error.detail


def test_scaling_while_decoding_is_near_and_only_for_large_files() -> None:
    """Below twice the wanted size the pixels are exact; above it they are close to the exact ones."""
    scaled = Jpegs(scale=True)
    small, large = jpeg((500, 400)), jpeg((3000, 2000))

    np.testing.assert_array_equal(decoded(small, scaled), decoded(small, None))
    difference = np.abs(decoded(large, scaled).astype(int) - decoded(large, None))
    assert 0 < difference.max()
    assert difference.mean() < 1


def test_without_a_compiler_pillow_does_it_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the compiler is missing, Pillow decodes all files."""
    monkeypatch.setattr(
        "model.preprocessing.compiled.resize.Resize.__init__", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
    )
    jpegs = Jpegs(tmp_path)

    np.testing.assert_array_equal(decoded(jpeg(), jpegs), decoded(jpeg(), None))


@pytest.mark.parametrize(
    "options", [{}, {"mode": "L"}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"keep_rgb": True}], ids=str
)
def test_quick_files_are_equal_pixel_for_pixel(options: dict[str, Any]) -> None:
    """`quick` gives Pillow's pixels, also for files that libjpeg warns about."""
    data = jpeg((240, 180), **options)
    at = data.index(b"\xff\xda")
    for file in (data, data[: at + 400] + b"\xff\xd9"):
        assert answer(file, None) == quick_answer(file)


def quick_answer(data: bytes) -> bytes | str:
    """The pixels of a small file by `quick`, or the text of its refusal."""
    out = np.zeros((RECIPE.size, RECIPE.size, 3), np.uint8)
    quick = compiled_decoder().quick(data)
    assert quick is not None
    try:
        quick(out)
    except UnsupportedImage as error:
        return error.detail
    return out.tobytes()


def test_limits_hold_for_small_files() -> None:
    """A small file is refused when VIM_MAX_PIXELS is lower than its size."""
    quick = compiled_decoder(DecodeLimits(1000)).quick(jpeg((240, 180)))
    assert quick is not None
    with pytest.raises(TooManyPixels):
        quick(np.zeros((224, 224, 3), np.uint8))


def test_nothing_is_quick_without_compiled_code_or_with_a_large_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop neither waits for the compiler nor resizes to a large input."""
    jpegs = Jpegs()
    decoded(jpeg(), jpegs)  # waits for the compiler

    assert is_quick(jpegs, RECIPE)
    assert not is_quick(jpegs, Preprocess(size=512))
    assert not is_quick(jpegs, Preprocess(size=32))
    assert not is_quick(None, RECIPE)
    monkeypatch.setattr(
        "model.preprocessing.compiled.resize.Resize.__init__", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
    )
    assert not is_quick(Jpegs(), RECIPE)


def is_quick(jpegs: Jpegs | None, recipe: Preprocess) -> bool:
    """Whether a small file may be decoded on the event loop."""
    return Decoder(recipe, LIMITS, jpegs=jpegs).quick(jpeg((240, 180))) is not None


def test_only_an_encoded_small_file_is_quick() -> None:
    """Pixels and larger files are decoded in a thread."""
    decoder = compiled_decoder()

    assert [decoder.quick(jpeg(size)) is not None for size in ((240, 180), (500, 400))] == [True, False]
    assert decoder.quick(np.zeros((180, 240, 3), np.uint8)) is None


@pytest.mark.parametrize("broken", ["resize", "cmyk"])
def test_code_that_gives_other_pixels_is_not_used(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The self-test at start finds a single other pixel; then Pillow decodes, with a warning."""
    resize, convert = Resize.__call__, CmykToRgb.__call__

    def other_resize(self: Resize, *args: Any) -> np.ndarray:
        pixels = resize(self, *args)
        pixels[100, 100, 1] ^= 1
        return pixels

    def other_colours(self: CmykToRgb, memory: np.ndarray) -> None:
        convert(self, memory)
        memory[3 * (100 * 303 + 150)] ^= 128

    monkeypatch.setattr(
        *((Resize, "__call__", other_resize) if broken == "resize" else (CmykToRgb, "__call__", other_colours))
    )
    jpegs = Jpegs()
    data = jpeg()

    np.testing.assert_array_equal(decoded(data, jpegs), decoded(data, None))
    assert not jpegs.ready
    assert "JPEG files are decoded by Pillow: RuntimeError: the compiled code does not give" in caplog.text


def test_the_self_test_covers_all_kinds() -> None:
    """The self-test has RGB and CMYK files, upright and rotated, of odd size."""
    samples = list(jpeg_check.samples())

    assert 4 == len({(sample.cmyk, sample.turn.swaps) for sample in samples})
    for sample in samples:
        with Image.open(io.BytesIO(sample.data)) as image:
            assert ((303, 227), "CMYK" if sample.cmyk else "RGB") == (image.size, image.mode)
            assert RECIPE.plain_turn(image) == sample.turn


@pytest.mark.parametrize("crop", ["full", "pad"])
@pytest.mark.parametrize("size", [(240, 180), (180, 240), (1600, 400), (97, 101)])
def test_other_crops_are_those_of_the_recipe(crop: Crop, size: tuple[int, int]) -> None:
    """The compiled resize gives the recipe's own pixels for the whole image, squashed or padded."""
    recipe, data = dataclasses.replace(RECIPE, crop=crop), jpeg(size)
    out = np.empty((RECIPE.size, RECIPE.size, 3), np.uint8)

    Decoder(recipe, LIMITS, jpegs=JPEGS).decode(data, out)

    np.testing.assert_array_equal(out, recipe(Image.open(io.BytesIO(data))))
