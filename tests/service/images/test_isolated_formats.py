"""AVIF, HEIC and JPEG XL: every kind of file gives the picture, and hostile ones do not affect others."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms
from pillow_jxl import JpegXLImagePlugin

from model.preprocessing.recipe import Mode, Preprocess
from service.errors import ImageTooComplex, RequestError, TooManyPixels, UnsupportedImage
from service.images.decode import DecodeLimits, Decoder, DecodeTimes, Pixels
from service.images.isolated.process import DecoderProcesses
from tests.model.preprocessing.profiles import rgb_profile
from tests.service.images import bmff_files
from tests.service.images.bmff_files import code_points, coded, grid, icc, picture, sample, single, turned
from tests.service.images.image_files import encode

assert JpegXLImagePlugin  # importing it registers the format with Pillow
SIZE = 64
CLOSE = 6  # mean difference in levels, the loss of the encoders
CLEAR = Image.linear_gradient("L").resize((128, 96))


@pytest.fixture(scope="module")
def processes() -> Iterator[DecoderProcesses]:
    """Decoder processes for all tests of this module."""
    processes = DecoderProcesses(patience_s=60)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def decode(processes: DecoderProcesses) -> Callable[..., Pixels]:
    """A function that decodes a file to (SIZE, SIZE, 3)."""

    def decoded(data: bytes, mode: Mode = "friendly") -> Pixels:
        return decoded_with_times(processes, data, mode)[0]

    return decoded


def decoded_with_times(
    processes: DecoderProcesses, data: bytes, mode: Mode = "friendly", limits: DecodeLimits | None = None
) -> tuple[Pixels, DecodeTimes]:
    """The pixels of a file, and what decoding reports."""
    out = np.full((SIZE, SIZE, 3), 7, np.uint8)
    decoder = Decoder(Preprocess(SIZE, mode=mode), limits or DecodeLimits(100_000_000), isolated=processes)
    return out, decoder.decode(data, out)


def expected(image: Image.Image) -> Pixels:
    """The pixels of the image before encoding."""
    return Preprocess(SIZE, mode="friendly")(image)


def distance(found: Pixels, wanted: Pixels) -> float:
    """Mean difference in levels."""
    return float(np.abs(found.astype(int) - wanted).mean())


def with_alpha() -> Image.Image:
    """The picture with a gradient of transparency."""
    image = picture()
    image.putalpha(CLEAR)
    return image


GREY = Image.merge("RGB", [picture().getchannel("R")] * 3)
TURNED = picture().transpose(Image.Transpose.ROTATE_270)
KINDS: dict[str, tuple[bytes, Image.Image]] = {
    "heic": (sample("plain.heic"), picture()),
    "heic 10 bits": (sample("ten_bits.heic"), picture()),
    "heic grey 10 bits": (sample("grey_ten_bits.heic"), GREY),
    "heic turned by its container, and EXIF": (sample("turned.heic"), TURNED),
    "heic turned by its container": (single(coded(sample("plain.heic")), turned(3)), TURNED),
    "avif": (encode(picture(), "AVIF"), picture()),
    "avif 4:4:4": (encode(picture(), "AVIF", subsampling="4:4:4"), picture()),
    "avif grey": (encode(GREY.convert("L"), "AVIF"), GREY),
    "avif alpha": (encode(with_alpha(), "AVIF", quality=90), with_alpha()),
    "avif turned by its container": (single(coded(encode(picture(), "AVIF")), turned(3)), TURNED),
    "jxl": (encode(picture(), "JXL"), picture()),
    "jxl lossless": (encode(picture(), "JXL", lossless=True), picture()),
    "jxl alpha": (encode(with_alpha(), "JXL"), with_alpha()),
    "jxl grey": (encode(GREY.convert("L"), "JXL"), GREY),
    "jxl grey 16 bits": (sample("grey_16_bits.jxl"), GREY),
    "jxl in a container": (encode(picture(), "JXL", use_container=True), picture()),
    "jxl turned by its header": (sample("turned.jxl"), TURNED),
    "jxl of a turned jpeg": (sample("turned_jpeg.jxl"), TURNED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_picture(decode: Callable[..., Pixels], kind: str) -> None:
    """The pixels are those of the picture before it was encoded, upright and on white."""
    data, image = KINDS[kind]

    assert distance(decode(data), expected(image)) < CLOSE


def test_lossless_pixels_are_exact(decode: Callable[..., Pixels]) -> None:
    """Without loss every pixel is that of the picture."""
    np.testing.assert_array_equal(decode(KINDS["jxl lossless"][0]), expected(picture()))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("form", ["HEIC", "AVIF"])
def test_tiles_are_put_together(decode: Callable[..., Pixels], form: str, rows: int, columns: int) -> None:
    """The tiles of a grid, as phones write it, are combined to one picture."""
    square = picture().resize((128, 128))  # AVIF allows tiles of multiples of 64
    tile = coded(sample("plain.heic") if form == "HEIC" else encode(square, "AVIF"))
    image = picture() if form == "HEIC" else square
    whole = Image.fromarray(np.tile(np.asarray(image), (rows, columns, 1)))

    assert distance(decode(grid(tile, rows, columns, tile_side=image.size)), expected(whole)) < CLOSE


def test_the_first_picture_of_an_animation(decode: Callable[..., Pixels]) -> None:
    """Of an image sequence the first picture counts."""
    data = encode(picture(), "AVIF", save_all=True, append_images=[Image.new("RGB", (128, 96), "blue")])

    assert distance(decode(data), expected(picture())) < CLOSE


def test_an_animated_jpeg_xl_is_refused(decode: Callable[..., Pixels]) -> None:
    """An animated JPEG XL is refused, because its decoder would return the last picture."""
    with pytest.raises(UnsupportedImage, match="an animated JPEG XL image is not supported"):
        decode(sample("animated.jxl"))


# --- colours --------------------------------------------------------------------------------------------------------


def in_p3() -> Image.Image:
    """The picture's pixels, interpreted as Display P3 and converted to sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile("Display P3")))
    found = ImageCms.profileToProfile(picture(), source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert found is not None
    return found


@pytest.mark.parametrize("form", ["HEIC", "AVIF"])
@pytest.mark.parametrize(
    "properties",
    [
        (code_points(12, 13),),
        (icc(rgb_profile("Display P3")),),
        (code_points(1, 13), icc(rgb_profile("Display P3"))),
    ],
    ids=["code points", "profile", "the profile counts"],
)
def test_colours_of_a_container(processes: DecoderProcesses, form: str, properties: tuple[bytes, ...]) -> None:
    """Display P3 is converted to sRGB, in every form that a file can have it; `reference` ignores it."""
    tile = coded(sample("plain.heic") if form == "HEIC" else encode(picture(), "AVIF"))
    data = single(tile, *properties)
    found, times = decoded_with_times(processes, data)

    assert times.profile == "converted"
    assert distance(found, expected(in_p3())) < CLOSE < distance(found, expected(picture()))
    assert distance(decoded_with_times(processes, data, "reference")[0], expected(picture())) < CLOSE


def test_colours_of_another_item_do_not_count(processes: DecoderProcesses) -> None:
    """The colour space of a gain map or thumbnail is ignored."""
    data = single(coded(sample("plain.heic")), unused=code_points(9, 16))

    assert decoded_with_times(processes, data)[1].profile is None


def test_colours_of_jpeg_xl(processes: DecoderProcesses) -> None:
    """A JPEG XL file with a profile is converted too."""
    data = encode(picture(), "JXL", lossless=True, icc_profile=None)
    found, times = decoded_with_times(processes, data)

    assert times.profile == "srgb"
    np.testing.assert_array_equal(found, expected(picture()))


# --- hostile files --------------------------------------------------------------------------------------------------

PLAIN = {
    "HEIC": sample("plain.heic"),
    "AVIF": encode(picture(), "AVIF"),
    "JPEG XL": encode(picture(), "JXL"),
    "JPEG XL container": encode(picture(), "JXL", use_container=True),
}


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(decode: Callable[..., Pixels], form: str, kept: float) -> None:
    """A truncated file is refused."""
    data = PLAIN[form]

    with pytest.raises(UnsupportedImage, match="is truncated|is damaged|does not contain its size|has no codestream"):
        decode(data[: max(16, int(len(data) * kept))])


def test_mutated_files_do_not_harm_good_ones(decode: Callable[..., Pixels]) -> None:
    """Damaged files are refused as such or decoded, never by an error of the service; good ones stay right."""
    chance = random.Random(24)
    wanted = {form: decode(data) for form, data in PLAIN.items()}
    for number in range(400):
        form = chance.choice(list(PLAIN))
        mutated = bytearray(PLAIN[form])
        for _ in range(chance.choice([1, 1, 2, 8])):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        with contextlib.suppress(RequestError):
            decode(bytes(mutated))
        if number % 20 == 0:
            np.testing.assert_array_equal(decode(PLAIN[form]), wanted[form])


@pytest.mark.parametrize("form", ["HEIC", "AVIF"])
def test_a_size_beyond_the_limit_is_refused_before_decoding(decode: Callable[..., Pixels], form: str) -> None:
    """A file that claims too many pixels is refused before decoding."""
    with pytest.raises(TooManyPixels, match="20000 x 20000 = 400000000 pixels"):
        decode(single(coded(PLAIN[form]), side=(20_000, 20_000)))


def test_a_picture_that_is_larger_than_its_file_says(processes: DecoderProcesses) -> None:
    """The memory of a decoder is limited by the size that the file claims, not by what the picture takes."""
    flat = coded(encode(Image.new("RGB", (12_000, 8_000)), "AVIF", speed=10))
    data = single(flat, side=(8, 8))

    assert len(data) < 10_000
    with pytest.raises(UnsupportedImage, match="the AVIF image is damaged"):
        decoded_with_times(processes, data)


def test_a_large_file_after_a_small_one(decode: Callable[..., Pixels]) -> None:
    """The limits of a small file do not apply to the next file, which may take more."""
    decode(PLAIN["HEIC"])

    assert distance(decode(PLAIN["HEIC"] + bmff_files.box(b"free", bytes(100_000_000))), expected(picture())) < CLOSE


def test_memory_is_checked_before_decoding(processes: DecoderProcesses) -> None:
    """VIM_MAX_DECODE_BYTES also limits these formats."""
    with pytest.raises(ImageTooComplex, match="takes up to .* bytes of memory; the limit is 100000"):
        decoded_with_times(processes, PLAIN["HEIC"], limits=DecodeLimits(1_000_000, 100_000))


def test_without_decoder_processes_the_formats_are_refused() -> None:
    """Without decoder processes these formats are refused, and the others are decoded."""
    with pytest.raises(UnsupportedImage, match="HEIC is not decoded here"):
        Decoder(Preprocess(SIZE), DecodeLimits(1_000_000)).decode(PLAIN["HEIC"], np.zeros((SIZE, SIZE, 3), np.uint8))


def test_the_picture_is_not_symmetric() -> None:
    """The picture is not symmetric; otherwise the tests of rotated files would pass for every rotation."""
    assert distance(expected(picture()), expected(TURNED)) > 3 * CLOSE
    assert bmff_files.WIDTH != bmff_files.HEIGHT
