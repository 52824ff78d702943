"""`python -m model evaluate` gives the right figures on a generated folder, also with damaged files in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model import Preprocess, load
from model.__main__ import main
from model.commands.evaluate import Tally, calibration_error, evaluate, wilson
from model.commands.image_folder import find
from model.errors import ModelError
from model.runtime.runner import Runner
from tests.model.loading.checkpoints import state
from tests.tiny import LABELS, photo, write_tiny_model

IMAGES = 21


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with seven classes, as a model directory."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Path:
    """A folder with three images per class."""
    root = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        place = root / LABELS[number % 7].replace(" ", "_").upper()
        place.mkdir(exist_ok=True)
        (place / f"{number}.jpg").write_bytes(photo(number))
    return root


@pytest.fixture(scope="module")
def expected(directory: Path, folder: Path) -> tuple[int, int, float]:
    """Compute top-1, top-5 and mean confidence directly."""
    vim, right, near, confidence = load(directory, device="cpu"), 0, 0, 0.0
    mean, std = (torch.tensor(x)[:, None, None] for x in (vim.preprocess.mean, vim.preprocess.std))
    for sample in find(folder, vim.labels):
        pixels = torch.from_numpy(Preprocess(size=64)(Image.open(sample.path))).permute(2, 0, 1)
        scores = vim(((pixels / 255 - mean) / std)[None]).softmax(-1)[0]
        right += int(scores.argmax() == sample.label)
        near += int(sample.label in scores.topk(5).indices)
        confidence += float(scores.max())
    return right, near, confidence / IMAGES


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the command and return its JSON."""
    assert main(["evaluate", *arguments, "--json", "--device", "cpu"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("batch", ["1", "4", "64"])
def test_the_numbers_are_those_of_the_plain_way(
    directory: Path,
    folder: Path,
    expected: tuple[int, int, float],
    batch: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The figures equal a direct computation for every batch size, also with a smaller last batch."""
    found = report(capsys, str(directory), str(folder), "--batch-size", batch)

    right, near, confidence = expected
    assert found["images"] == found["folder_images"] == IMAGES
    assert found["top1"]["value"] == pytest.approx(right / IMAGES)
    assert found["top5"]["value"] == pytest.approx(near / IMAGES)
    assert (found["top1"]["low"], found["top1"]["high"]) == pytest.approx(wilson(right, IMAGES))
    assert found["mean_confidence"] == pytest.approx(confidence, abs=1e-5)
    assert found["fingerprint"] == load(directory).fingerprint
    assert found["unreadable"] == []
    assert found["images_per_second"] > 0


def test_people_get_a_table(directory: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json a table is printed to stdout; --limit covers all classes."""
    assert main(["evaluate", str(directory), str(folder), "--limit", "7"]) == 0

    out = capsys.readouterr().out
    assert "images       7 of 21\n" in out
    assert "%  (95 % interval " in out
    assert "images/s with decoding, at 64 px on " in out


def test_bad_images_are_counted_and_named(
    directory: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unreadable images neither stop the run nor count as wrong."""
    shutil.copytree(folder, tmp_path / "images")
    bad = tmp_path / "images" / "THING_3"
    (bad / "page.jpg").write_text("<html>")
    (bad / "cut.png").write_bytes(photo(1, kind="PNG")[:200])

    found = report(capsys, str(directory), str(tmp_path / "images"))

    assert found["images"] == IMAGES
    assert {Path(entry["file"]).name for entry in found["unreadable"]} == {"page.jpg", "cut.png"}
    assert main(["evaluate", str(directory), str(tmp_path / "images")]) == 0
    assert f"not scored   2 images\n  {bad / 'cut.png'}: " in capsys.readouterr().out


def test_nothing_readable_is_an_error(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no image can be read the error names the first file."""
    (tmp_path / "thing 1").mkdir()
    (tmp_path / "thing 1" / "a.jpg").write_text("no")

    assert main(["evaluate", str(directory), str(tmp_path)]) == 1

    assert "none of the 1 images could be scored; the first: " in capsys.readouterr().err


def test_unknown_folders_end_it_before_it_runs(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders that are not classes end the command with status 1 and the nearest classes, before the model runs."""
    (tmp_path / "thing x").mkdir()

    assert main(["evaluate", str(directory), str(tmp_path)]) == 1

    assert "thing x: did you mean 'thing" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_scored(directory: Path, folder: Path) -> None:
    """Ctrl-C reports the results so far, marked as interrupted; before the first batch it is an error."""
    vim = load(directory, device="cpu")
    samples, calls = find(folder, vim.labels), iter(range(9))

    def press(_: int) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    tally = evaluate(Runner(vim, max_batch=4), samples, press)

    assert tally.interrupted
    assert tally.report()["images"] == 8

    def at_once() -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(ModelError, match="interrupted before the first batch"):
        evaluate(Runner(vim, max_batch=4), at_once())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "does not classify"),
        ({"num_classes": 1}, "scores each class by itself"),
        ({"image_size": (64, 32)}, "only square RGB images can be prepared: the model takes 3x64x32"),
        ({"class_token": "none", "pool": "all"}, "does not classify"),
    ],
)
def test_models_that_cannot_be_evaluated(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that does not classify is refused before any image is opened."""
    assert main(["evaluate", str(write_tiny_model(tmp_path / "m", **changes)), str(tmp_path)]) == 1

    assert message in capsys.readouterr().err


def test_sizes_that_nothing_is_resized_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At sizes up to 32 px images must have the model's own size, as in the reference."""
    save_file(state(), tmp_path / "a.safetensors")
    (tmp_path / "images" / "class_0").mkdir(parents=True)
    for side in (32, 40):
        (tmp_path / "images" / "class_0" / f"{side}.png").write_bytes(photo(size=(side, side), kind="PNG"))

    found = report(capsys, str(tmp_path / "a.safetensors"), str(tmp_path / "images"))

    assert found["images"] == 1
    assert found["unreadable"][0]["reason"] == "is 40x40 px, and at this size nothing is resized"


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (38050, 50000, 0.7572, 0.7647)],
)
def test_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    """The interval equals published values; the first is Newcombe 1998, table I."""
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_calibration_error_is_that_of_the_definition() -> None:
    """The error is the weighted mean difference of confidence and accuracy in ten bins of equal width."""
    generator = np.random.default_rng(0)
    confidence = np.concatenate((generator.uniform(0.1, 1, 500), [0.0, 1.0]))
    right = generator.random(502) < confidence**2
    total = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & ((confidence < low + 0.1) | ((low > 0.85) & (confidence == 1)))
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())

    assert calibration_error(confidence, right) == pytest.approx(total, abs=1e-3)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([0.9, 0.95]), np.array([False, False])) == pytest.approx(0.925)


def test_equal_scores_are_no_success() -> None:
    """A model that gives every class the same score is right about the first class only."""
    tally = Tally(top=2)
    tally.add(np.full((3, 4), 0.25, np.float32), [0, 1, 2])

    assert [rank for _, rank in tally.answers] == [0, 1, 2]
