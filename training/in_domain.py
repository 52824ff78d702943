"""`python -m training.in_domain ARCHIVE`: fit `in_domain` of the demo model, and write it beside its weights.

It is fitted on the training photographs and on pictures of nothing in particular. Its table is of the validation
photographs, because the model has learned the features of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.heads import domain_file
from model.heads.domain import Domain
from model.loading.load import load
from model.runtime.runner import Runner
from model.shipped import shipped
from service.cli.teach import domain
from training.background import background
from training.data import Pixels, read_photos

BACKGROUNDS = 250
BATCH = 8

Floats = np.ndarray[Any, np.dtype[np.float64]]


def fit(runner: Runner, archive: Path) -> Domain:
    """Fit and calibrate for the model of a runner."""
    size = runner.vim.config.image_size[0]
    train, validation = (read_photos(archive, split) for split in ("train", "validation"))
    crop = runner.vim.preprocess
    taught = features(runner, [crop(image) for image in train.images])
    unseen = features(runner, [crop(image) for image in validation.images])
    other = features(runner, [background(number, size) for number in range(BACKGROUNDS)])
    fitted = domain.fit(taught, train.classes.numpy(), other)
    return domain.recalibrated(fitted, unseen)


def features(runner: Runner, pixels: Sequence[Pixels]) -> Floats:
    """The features (N, D) that the classifier head takes, of pixels (S, S, 3)."""
    batches = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    rows = [runner.run(batch, scores=False, cls=True, mean=False).cls for batch in batches]
    return np.concatenate([row for row in rows if row is not None]).astype(np.float64)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.in_domain", description=__doc__)
    parser.add_argument("archive", type=Path, help="the photographs, as a zip of train/ and validation/")
    parser.add_argument("--out", type=Path, default=shipped("demo") / "in_domain.json")
    options = parser.parse_args()
    vim = load("demo", device="cpu")
    domain_file.save(options.out, vim.fingerprint, fit(Runner(vim), options.archive))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
