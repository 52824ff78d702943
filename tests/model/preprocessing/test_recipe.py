"""The recipe equals the reference's pixels on any version of Pillow, and uses little memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import ConfigError
from model.preprocessing.recipe import Preprocess
from model.preprocessing.resize import Pixels
from tests.golden import SHARED, needs_shared

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = SHARED / "golden" / "preproc"
CASES: dict[str, Any] = json.loads((GOLDEN / "index.json").read_text())["cases"] if GOLDEN.is_dir() else {}
ORIENTATION = 0x0112

untouched = Preprocess(size=8)  # up to 32 pixels images keep their size, so only colours are tested


def _noise(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _plain(image: Image.Image, resize: int, crop: int) -> Pixels:
    """The reference's transform on the whole image, with torchvision's padding."""
    image = image.convert("RGB")
    width, height = image.size
    long = int(resize * max(image.size) / min(image.size))
    new_width, new_height = (resize, long) if width <= height else (long, resize)
    image = image.resize((new_width, height), Image.Resampling.BICUBIC)
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    pads = [(max(0, crop - side) // 2, (max(0, crop - side) + 1) // 2) for side in (new_height, new_width)]
    pixels = np.pad(np.asarray(image), [*pads, (0, 0)])
    top, left = (round((side - crop) / 2) for side in pixels.shape[:2])
    return pixels[top : top + crop, left : left + crop]


@needs_shared
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    """Every golden case is equal to the reference, pixel for pixel."""
    entry = CASES[case]
    recipe = Preprocess(size=entry["input_size"], crop_ratio=entry["eval_crop_ratio"])
    with Image.open(GOLDEN / "images" / entry["image"]) as image, np.load(GOLDEN / "expected.npz") as expected:
        np.testing.assert_array_equal(recipe(image), expected[case])
    assert recipe.resize == entry["resize"]


@needs_shared
def test_golden_normalisation() -> None:
    """The default mean and std are those of the reference's Normalize."""
    recipe = Preprocess()
    values = np.arange(256) / 255
    with np.load(GOLDEN / "expected_float.npz") as expected:
        table = (values - np.array(recipe.mean)[:, None]) / np.array(recipe.std)[:, None]
        np.testing.assert_allclose(table, expected["normalize_table_256"], atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_any_shape_equals_plain_pillow(seed: int) -> None:
    """Random shapes, sizes, ratios and modes agree with plain Pillow passes over the whole image."""
    rng = np.random.default_rng(seed)
    width, height = (int(rng.integers(1, rng.choice([30, 700]))) for _ in range(2))
    mode = str(rng.choice(["RGB", "L", "RGBA", "LA", "CMYK"]))
    recipe = Preprocess(size=int(rng.integers(33, 120)), crop_ratio=float(rng.uniform(0.5, 1.4)))
    image = _noise(seed, width, height, mode)

    found = recipe(image)

    assert recipe.resize is not None
    np.testing.assert_array_equal(found, _plain(image, recipe.resize, recipe.size))


@pytest.mark.parametrize(
    ("width", "height", "digest"),
    [
        (301, 257, "52d3c5adf779cc73"),
        (120, 500, "9541d4409ee3c4c4"),
        (400, 1300, "fb7fb7678c79d57e"),  # Pillow 13's own resize takes the vertical pass first
        (3, 2, "2dc323e2b873e8f7"),
        (2, 3000, "9e70a45d199399a1"),
    ],
)
def test_pixels_are_those_of_pillow_10(width: int, height: int, digest: str) -> None:
    """These hashes were made with the native resize of Pillow 10.1.0, the version that the reference pins."""
    y, x, c = np.ogrid[:height, :width, :3]
    pixels = ((x * x * 7 + y * y * 3 + x * y * (c + 1) + c * 85) % 256).astype(np.uint8)

    assert hashlib.sha256(Preprocess()(Image.fromarray(pixels)).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("mode", ["reference", "friendly"])
def test_the_result_is_a_fresh_contiguous_array(mode: Any) -> None:
    """Callers may copy it into a slot or change it; the image stays as it was."""
    image = _noise(0, 60, 50, "P")
    image.info["transparency"] = 3
    before = image.tobytes()
    for size in (8, 40):
        pixels = Preprocess(size=size, mode=mode)(image)
        pixels[:] = 0

        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
    assert (image.tobytes(), image.info["transparency"]) == (before, 3)


def test_reference_sizes_up_to_32_leave_the_image() -> None:
    """At sizes up to 32 px the image is neither resized nor cropped, as in the reference."""
    image = _noise(1, 50, 40)

    np.testing.assert_array_equal(Preprocess(size=32)(image), np.asarray(image))
    assert Preprocess(size=32).resize is None
    assert Preprocess(size=33)(image).shape == (33, 33, 3)


def test_reference_colours() -> None:
    """Alpha is dropped, 16 bits are clamped and EXIF is ignored, as Image.convert does."""
    deep = Image.fromarray(np.array([[255, 256, 65535]], np.uint16))
    turned = _noise(2, 5, 3)
    turned.getexif()[ORIENTATION] = 6

    assert untouched(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).tolist() == [[[10, 20, 30]]]
    assert untouched(deep)[0, :, 0].tolist() == [255, 255, 255]
    assert untouched(turned).shape == (3, 5, 3)


_FRUGAL = """
import resource, sys
from PIL import Image
from model.preprocessing.recipe import Preprocess

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for mode in ("reference", "friendly"):
    recipe = Preprocess(mode=mode)
    recipe(Image.new("RGB", (500, 400)))
    before = peak()
    for size in ((1, 65000), (65000, 1), (1, 1), (3, 2), (30000, 40), (40, 30000), (1, 1000000), (1000000, 1)):
        assert recipe(Image.new("RGB", size)).shape == (224, 224, 3)
    assert peak() - before < 64, f"extreme shapes took {peak() - before:.0f} MB in {mode} mode"
    large = Image.new("L", (10000, 10000))
    large.getexif()[0x0112] = 6
    before = peak()
    recipe(large)
    assert peak() - before < 32, f"a large image took {peak() - before:.0f} MB more in {mode} mode"
assert "torch" not in sys.modules, "preprocessing imported torch"
"""


def test_memory_stays_near_the_decoded_image() -> None:
    """Extreme shapes need no large intermediate image, large photographs no second copy, and nothing needs torch."""
    done = subprocess.run([sys.executable, "-c", _FRUGAL], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_recipe_goes_through_json() -> None:
    """to_dict is JSON-ready, names the derived resize, and from_dict reads it back."""
    recipe = Preprocess(size=384, crop_ratio=0.9, mode="friendly", mean=(0.5, 0.5, 0.5))
    values = json.loads(json.dumps(recipe.to_dict()))

    assert values["resize"] == 426
    assert Preprocess.from_dict(values) == recipe
    assert Preprocess.from_dict({}) == Preprocess()
    assert Preprocess().to_dict() == {
        "size": 224,
        "crop_ratio": 0.875,
        "mode": "reference",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": 256,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size must be a positive integer, got 0"),
        ({"size": 224.0}, "size must be a positive integer"),
        ({"size": True}, "size must be a positive integer"),
        ({"crop_ratio": 0}, "crop_ratio must be a positive number"),
        ({"crop_ratio": float("nan")}, "crop_ratio must be a positive number"),
        ({"crop_ratio": 500.0}, "leaves no pixel"),
        ({"mode": "kind"}, "mode must be one of reference, friendly, got 'kind'"),
        ({"mode": ["friendly"]}, "mode must be one of"),
        ({"interpolation": "nearest"}, "interpolation must be bicubic"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": 0.5}, "mean must be three numbers"),
        ({"mean": ["a", "b", "c"]}, "mean must be three numbers"),
        ({"std": [1, 1, 0]}, "std must be positive"),
        ({"resize": 255}, "resize 255 contradicts size 224 and crop_ratio 0.875, which give 256"),
        ({"crop_pct": 0.9}, "unknown preprocessing field 'crop_pct'"),
    ],
)
def test_invalid_recipes_are_refused(values: dict[str, Any], message: str) -> None:
    """Each refusal names the field and what was found."""
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict(values)


SHAPES = [(300, 200), (200, 300), (90, 90), (1000, 40), (3, 700)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_the_full_image_is_squashed(width: int, height: int) -> None:
    """Crop "full" is Pillow's bicubic resize of the whole image to a square."""
    image = _noise(3, width, height)

    found = Preprocess(size=64, crop="full")(image)

    np.testing.assert_array_equal(found, _resized(image, 64, 64))


def _resized(image: Image.Image, width: int, height: int) -> Pixels:
    """Pillow's resize, the horizontal pass first whatever its version is."""
    wide = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_padded_image_keeps_its_proportions(width: int, height: int) -> None:
    """Crop "pad" is the whole image, as large as it fits, in the middle of a black square."""
    image = _noise(4, width, height)
    across, down = (max(1, round(64 * side / max(width, height))) for side in (width, height))

    found = Preprocess(size=64, crop="pad")(image)

    left, top = (64 - across) // 2, (64 - down) // 2
    expected = np.zeros((64, 64, 3), np.uint8)
    expected[top : top + down, left : left + across] = _resized(image, across, down)
    np.testing.assert_array_equal(found, expected)


def test_the_crop_is_no_part_of_the_written_recipe() -> None:
    """The written recipe has no crop, because the crop is chosen for each image."""
    assert Preprocess(size=64).to_dict() == Preprocess(size=64, crop="pad").to_dict()
    with pytest.raises(ConfigError, match="crop"):
        Preprocess.from_dict({"crop": "pad"})
    with pytest.raises(ConfigError, match="crop must be one of center, full, pad, got 'none'"):
        Preprocess(crop="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="crop 'full' needs a model of more than 32 px"):
        Preprocess(size=32, crop="full")
