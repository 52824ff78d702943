"""The shipped demo model: its identity, and its predictions for samples and validation photographs."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import model
from training import photo_samples
from training.data import Photos, read_photos
from training.report import predict
from training.samples import FOLDER, Sample, answer, read_manifest

DIRECTORY = Path("models/demo")
ARCHIVE = Path("../shared/data/clothing10_160_trainval.zip")
FINGERPRINT = "1a2e32457a69"
LARGEST = 12_000_000  # bytes


@pytest.fixture(scope="module")
def network() -> model.Vim:
    """The shipped model with the scan that `auto` takes here."""
    return model.load(DIRECTORY, device="cpu")


def test_the_file_is_the_one_that_was_measured(network: model.Vim) -> None:
    """The file has the fingerprint that the model card, the README and the samples name."""
    assert FINGERPRINT == network.fingerprint
    assert FINGERPRINT in (DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert (DIRECTORY / "model.safetensors").stat().st_size <= LARGEST


def test_it_has_the_released_models_switches(network: model.Vim) -> None:
    """The demo model has the options of the released models."""
    config = network.config
    assert ("v2", "middle", "cls", "rms") == (config.bimamba, config.class_token, config.pool, config.norm)
    assert config.divide_out
    assert config.pos_embed
    assert not config.rope


SHIPPED = [(folder, one) for folder in (FOLDER, photo_samples.FOLDER) for one in read_manifest(folder)]


@pytest.mark.parametrize(("folder", "sample"), SHIPPED, ids=[sample.file for _, sample in SHIPPED])
def test_the_samples_get_the_answers_in_the_manifest(network: model.Vim, folder: Path, sample: Sample) -> None:
    """Each sample gets the manifest's class, and its score to a thousandth, including the wrong ones."""
    predicted, score = answer(network, folder / sample.file)
    assert sample.predicted == predicted
    assert score == pytest.approx(sample.score, abs=1e-3)


def test_every_sample_names_label_source_and_licence(network: model.Vim) -> None:
    """Every image of the folder is in the manifest, with label, source and licence."""
    samples = read_manifest()
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(sample.file for sample in samples)
    for sample in samples:
        assert sample.label in network.labels.names
        assert "Fashion-MNIST" in sample.source
        assert sample.licence.startswith("MIT")
        with Image.open(FOLDER / sample.file) as image:
            assert image.mode == "RGB"


def test_the_photographs_of_the_page_are_free_and_mostly_right(network: model.Vim) -> None:
    """Every photograph of the page is in the manifest with its source and licence; one or two have wrong answers."""
    samples = read_manifest(photo_samples.FOLDER)
    files = sorted(path.name for path in photo_samples.FOLDER.glob("*.jpg"))
    assert files == sorted(sample.file for sample in samples)
    assert FINGERPRINT in (photo_samples.FOLDER / "README.md").read_text(encoding="utf-8")
    assert "CC0 1.0 Universal" in (photo_samples.FOLDER / "LICENSE").read_text(encoding="utf-8")
    for sample in samples:
        assert sample.label in network.labels.names
        assert "clothing-dataset-small, validation/" in sample.source
        assert "CC0 1.0" == sample.licence
        with Image.open(photo_samples.FOLDER / sample.file) as image:
            assert (160, "RGB") == (min(image.size), image.mode)
    assert samples[0].predicted == samples[0].label
    assert 1 <= sum(sample.predicted != sample.label for sample in samples) <= 2


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not here: the photographs are not part of the project")
def test_it_is_right_about_photographs_it_never_saw(network: model.Vim) -> None:
    """The accuracy on every fourth validation photograph, preprocessed as when serving, is at least 78 percent."""
    photos = read_photos(ARCHIVE, "validation")
    subset = Photos(photos.images[::4], photos.classes[::4], photos.labels)
    logits, _ = predict(network, subset)
    right = torch.eq(logits.argmax(1), subset.classes).float().mean().item()
    assert right >= 0.78
