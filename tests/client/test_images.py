"""The images that the client accepts, and the packages that it needs for them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import vim_client.client
from PIL import Image, ImageOps
from vim_client import ClientError, images
from vim_client.images import ImageError, encoded

from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits, Decoder
from tests.tiny import photo

Mode = Literal["friendly", "reference"]

MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
)


def served(data: bytes, mode: Mode) -> np.ndarray:
    """The pixels that the server makes of a file."""
    recipe = Preprocess(size=40, mode=mode)
    out = np.zeros((40, 40, 3), np.uint8)
    Decoder(recipe, DecodeLimits(10**8)).decode(data, out)
    return out


def picture(mode: str) -> Image.Image:
    """An image of this mode, with transparency where it has any, and with 16-bit values where it can."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 4), np.uint8)
    if mode.startswith("I"):
        deep = Image.frombytes("I;16", (80, 60), noise[..., :2].tobytes())
        return deep if mode == "I;16" else Image.frombytes(mode, (80, 60), _raw(deep, mode))
    rgba = Image.fromarray(noise)
    if mode in ("La", "PA"):
        return rgba.convert("LA").convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", (80, 60), noise[..., :3].tobytes())
    return rgba.convert("RGBA" if mode == "RGBa" else "RGB").convert(mode) if "A" not in mode else rgba.convert(mode)


def _raw(deep: Image.Image, mode: str) -> bytes:
    """The same values as bytes of another mode."""
    values = np.asarray(deep)
    kinds = {"I": "i4", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
    return values.astype(kinds[mode]).tobytes()


@pytest.mark.parametrize("mode", ["friendly", "reference"])
@pytest.mark.parametrize("kind", MODES)
def test_every_mode_of_a_picture_gives_its_own_pixels(kind: str, mode: Mode) -> None:
    """For each of Pillow's modes the server's pixels of the sent file equal its preprocessing of the picture."""
    image = picture(kind)
    known = image.convert("LA") if kind == "La" else image.copy()  # no file has this mode; Pillow converts it to LA
    expected = Preprocess(size=40, mode=mode)(known)

    assert kind == image.mode
    np.testing.assert_array_equal(expected, served(encoded(image), mode))


@pytest.mark.parametrize("mode", ["friendly", "reference"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "colours"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("TIFF", "F")])
def test_an_opened_photograph_is_answered_as_its_file(kind: str, colours: str, orientation: int, mode: Mode) -> None:
    """A PIL image is sent with the EXIF orientation of its file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(size=(90, 70)))).convert(colours).save(file, kind, exif=exif)

    with Image.open(io.BytesIO(file.getvalue())) as image:
        np.testing.assert_array_equal(served(file.getvalue(), mode), served(encoded(image), mode))


def test_a_picture_turned_upright_is_not_turned_again() -> None:
    """`ImageOps.exif_transpose` removes the orientation, and the client does not bring it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(size=(90, 70)))).save(file, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))

    np.testing.assert_array_equal(np.asarray(upright), np.asarray(Image.open(io.BytesIO(encoded(upright)))))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255] * 5)])
def test_palettes_keep_their_transparency(transparency: int | bytes) -> None:
    """A palette with one transparent entry, or with alpha for each, gives the pixels of its file."""
    file = io.BytesIO()
    picture("P").save(file, "PNG", transparency=transparency)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        np.testing.assert_array_equal(served(file.getvalue(), "friendly"), served(encoded(image), "friendly"))


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("I;16", "PNG")])
def test_what_is_too_large_as_png_is_sent_smaller(mode: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture too large as PNG is sent as JPEG, or as WebP with transparency; 16-bit pictures stay PNG."""
    monkeypatch.setattr(images, "MAX_BYTES", 8000)
    image = picture(mode)
    image.getexif()[0x0112] = 3
    with Image.open(io.BytesIO(encoded(image))) as sent:
        assert (kind, (80, 60), 3) == (sent.format, sent.size, sent.getexif()[0x0112])


def test_a_photograph_of_24_megapixels_fits() -> None:
    """Noise of 24 megapixels is 72 MB as PNG, and is sent within the server's limit."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    image = Image.fromarray(noise).resize((6000, 4000), Image.Resampling.BILINEAR)

    assert len(encoded(image)) <= images.MAX_BYTES


def test_unreadable_images_are_an_error_of_the_client(tmp_path: Path) -> None:
    """A missing file and a truncated PIL image raise ImageError: a ClientError, an OSError, and one line."""
    file = tmp_path / "cut.png"
    file.write_bytes(encoded(picture("RGB"))[:4000])
    with Image.open(file) as image, pytest.raises(ImageError, match="truncated") as caught:
        encoded(image)
    assert isinstance(caught.value, ClientError)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=r"No such file or directory: '.*missing.jpg'"):
        encoded(tmp_path / "missing.jpg")


@pytest.mark.parametrize("image", [3, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused(image: object) -> None:
    """`encoded` raises TypeError for a number and for arrays of another shape or type."""
    with pytest.raises(TypeError, match="image|pixels"):
        encoded(image)


def test_pixels_without_pillow_are_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, numpy pixels raise ImportError with the command that installs it."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)

    with pytest.raises(ImportError, match="pip install pillow"):
        encoded(np.zeros((4, 4, 3), np.uint8))


def test_importing_the_client_loads_neither_the_server_nor_optional_packages() -> None:
    """`import vim_client` loads httpx and numpy, but not Pillow, tqdm, `service` or `model`."""
    folder = vim_client.client.__file__.rpartition("/vim_client/")[0]
    code = f"import sys; sys.path.insert(0, {folder!r}); import vim_client; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(shown.stdout.split())

    assert {"httpx", "numpy"} <= loaded
    assert set() == loaded & {"PIL", "tqdm", "service", "model"}


def test_every_public_name_is_importable() -> None:
    """Each name in `vim_client.__all__` exists."""
    assert [] == [name for name in vim_client.__all__ if not hasattr(vim_client, name)]
