"""`python -m bench.teach ARCHIVE`: how good heads are that are taught with few pictures of each class.

Heads are taught on features of the demo model for the photographs that it was trained with, and tested with the
validation photographs. So the figures are those of a model that knows the kind of picture well. Beside them: k-nearest
neighbours (cosine; the best k of five, chosen on the test pictures), and the head of the model itself.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.loading.load import load
from model.runtime.runner import Runner
from service.cli.teach import domain, fit
from service.cli.teach.report import wilson
from training.data import Photos, read_photos
from training.in_domain import Floats, features

SEEDS = 5
NEIGHBOURS = (1, 3, 5, 10, 20)

Labels = np.ndarray[Any, np.dtype[np.intp]]


def chosen(labels: Labels, each: int, seed: int) -> Labels:
    """The numbers of `each` pictures of every class, or of all of them."""
    random = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    return np.concatenate([random.permutation(group)[:each] for group in groups])


def nearest(taught: Floats, labels: Labels, unseen: Floats, truth: Labels) -> float:
    """The accuracy of the best number of neighbours."""
    unit, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (taught, unseen))
    order = np.argsort(-(other @ unit.T), axis=1)
    votes = [np.array([np.bincount(labels[row[:k]]).argmax() for row in order]) for k in NEIGHBOURS if k <= len(labels)]
    return max(float((one == truth).mean()) for one in votes)


def row(name: str, each: int, seeds: int, taught: tuple[Floats, Labels], test: tuple[Floats, Labels]) -> str:
    """A line of the table: the mean over seeds, and the interval of one test."""
    unseen, truth = test
    accuracies, neighbours, alarms, times = [], [], [], []
    for seed in range(seeds):
        numbers = chosen(taught[1], each, seed)
        rows, labels = taught[0][numbers], taught[1][numbers]
        start = time.perf_counter()
        fitted, like_taught = fit.fit(rows, labels), domain.fit(rows, labels)
        times.append(time.perf_counter() - start)
        answers = (unseen @ fitted.weight.T + fitted.bias).argmax(axis=1)
        accuracies.append(float((answers == truth).mean()))
        neighbours.append(nearest(rows, labels, unseen, truth))
        alarms.append(float((like_taught.score(unseen.astype(np.float32)) < 0.05).mean()))
    low, high = wilson(round(np.mean(accuracies) * len(truth)), len(truth))
    return (
        f"{name:>8}  {np.mean(accuracies):6.1%} ({low:.1%} to {high:.1%}), {np.std(accuracies):.1%} between seeds  "
        f"{np.mean(neighbours):6.1%}  {np.mean(alarms):6.1%}  {np.median(times):6.2f} s"
    )


def pixels(runner: Runner, photos: Photos) -> tuple[Floats, Labels]:
    """The features and classes of photographs."""
    recipe = runner.vim.preprocess
    return features(runner, [recipe(image) for image in photos.images]), photos.classes.numpy()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.teach", description=__doc__)
    parser.add_argument("archive", type=Path, help="the photographs, as a zip of train/ and validation/")
    options = parser.parse_args()
    runner = Runner(load("demo", device="cpu"))
    taught, test = (pixels(runner, read_photos(options.archive, split)) for split in ("train", "validation"))
    own = runner.vim.forward_head(torch.from_numpy(test[0]).float()).argmax(dim=1).numpy()
    print(f"{len(test[1])} test pictures; the model's own head: {(own == test[1]).mean():.1%}")
    print(" a class  head (95 % interval)  nearest neighbours  in_domain below 0.05  time to fit")
    for name, each, seeds in (("5", 5, SEEDS), ("20", 20, SEEDS), ("all", len(taught[1]), 1)):
        print(row(name, each, seeds, taught, test))


if __name__ == "__main__":
    main()
