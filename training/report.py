"""Measure a demo model as it is served, and write its model card.

    python -m training.report --data ZIP --model models/demo --recipe recipe.md

All measurements use `model.load` and the model's own preprocessing. Calibration divides the head by a temperature; its
error is cross-fitted: every photograph is judged with a temperature that was fitted to the other folds.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import model
from training.data import Photos, normalised, read_photos

FOLDS = 5
BINS = 10


@dataclass(frozen=True)
class Measured:
    """The finished model's results on the validation photographs."""

    top1: float
    top3: float
    interval: tuple[float, float]
    calibration_error: float
    neighbour: float
    milliseconds: float
    confusion: Tensor  # (classes, classes): rows are the truth


def main() -> None:
    """Calibrate the model directory in place, measure it, and write README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, help="text file with the recipe, for the card")
    args = parser.parse_args()
    report(args.data, args.model, args.recipe.read_text() if args.recipe else "")


def report(archive: Path, directory: Path, recipe: str) -> Measured:
    """Divide the head by the temperature, measure the result as served, and write the model card."""
    photos = read_photos(archive, "validation")
    before, _ = predict(model.load(directory, device="cpu"), photos)
    cross_fitted = cross_fitted_error(before, photos.classes)
    temperature = fit_temperature(before, photos.classes)
    fold_temperature(directory, temperature)
    network = model.load(directory, device="cpu")
    logits, features = predict(network, photos)
    measured = measure(network, logits, features, photos.classes, cross_fitted)
    (directory / "README.md").write_text(_card(network, photos, measured, directory, recipe), encoding="utf-8")
    print(f"top-1 {measured.top1:.1%}, top-3 {measured.top3:.1%}, neighbour {measured.neighbour:.1%}")
    print(f"calibration error {cross_fitted:.1%}, temperature {temperature:.2f}, {measured.milliseconds:.1f} ms")
    return measured


@torch.inference_mode()
def predict(network: model.Vim, photos: Photos) -> tuple[Tensor, Tensor]:
    """Return logits (n, classes) and class-token features (n, D), with the preprocessing of serving."""
    pixels = torch.from_numpy(np.stack([network.preprocess(image) for image in photos.images]))
    features = torch.cat([network.forward_features(normalised(batch)) for batch in torch.split(pixels, 32)])
    return network.forward_head(features), features


def measure(network: model.Vim, logits: Tensor, features: Tensor, classes: Tensor, calibration: float) -> Measured:
    """Return all figures of the model card."""
    hits = int((logits.argmax(1) == classes).sum())
    confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.long)
    confusion.index_put_((classes, logits.argmax(1)), torch.tensor(1), accumulate=True)
    return Measured(
        top1=hits / len(classes),
        top3=(logits.topk(3).indices == classes[:, None]).any(1).float().mean().item(),
        interval=wilson(hits, len(classes)),
        calibration_error=calibration,
        neighbour=neighbour_accuracy(features, classes),
        milliseconds=_milliseconds(network),
        confusion=confusion,
    )


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, 1927)."""
    p, scale = hits / total, 1 + z * z / total
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    centre = p + z * z / (2 * total)
    return (centre - half) / scale, (centre + half) / scale


def calibration_error(scores: Tensor, classes: Tensor) -> float:
    """Return the expected calibration error of the top score, with ten bins of equal width."""
    confidence, guess = scores.max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = (guess == classes).float() - confidence
    return sum(abs(gap[bins == b].sum().item()) for b in range(BINS)) / len(classes)


def cross_fitted_error(logits: Tensor, classes: Tensor) -> float:
    """Return the calibration error when no photograph influences its own temperature."""
    fold = torch.arange(len(classes)) % FOLDS
    scores = torch.empty_like(logits)
    for held in range(FOLDS):
        temperature = fit_temperature(logits[fold != held], classes[fold != held])
        scores[fold == held] = (logits[fold == held] / temperature).softmax(1)
    return calibration_error(scores, classes)


def fit_temperature(logits: Tensor, classes: Tensor) -> float:
    """Return the temperature of the highest likelihood, to a hundredth of its logarithm."""
    candidates = torch.linspace(math.log(0.2), math.log(5), 320).exp()
    losses = torch.stack([F.cross_entropy(logits / t, classes) for t in candidates])
    return candidates[losses.argmin()].item()


def fold_temperature(directory: Path, temperature: float) -> None:
    """Divide the head by the temperature: the order of the classes stays, and the scores are calibrated."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name] / temperature
    save_file(weights, path)
    path.chmod(0o644)


def neighbour_accuracy(features: Tensor, classes: Tensor) -> float:
    """Return how often the nearest other photograph (cosine) has the same class."""
    unit = F.normalize(features, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return (classes[nearest] == classes).float().mean().item()


@torch.inference_mode()
def _milliseconds(network: model.Vim, batch: int = 8, repeats: int = 15) -> float:
    images = torch.randn(batch, network.config.channels, *network.config.image_size)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2] / batch * 1000


def _card(network: model.Vim, photos: Photos, measured: Measured, directory: Path, recipe: str) -> str:
    low, high = measured.interval
    config, size = network.config, (directory / "model.safetensors").stat().st_size
    parameters = sum(p.numel() for p in network.parameters())
    return f"""# Demo model: ten kinds of garment

A small Vision Mamba ({parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB, float32): {config.image_size[0]} px
images, patches of {config.patch_size} px every {config.stride} px ({config.seq_len} tokens), width {config.embed_dim},
depth {config.depth}, d_state {config.d_state}, and the released models' switches (bidirectional v2, middle class token,
RMSNorm, position embedding, divided output). Fingerprint `{network.fingerprint}`.

## What it reaches

Measured with this file through `model.load` and its own preprocessing (`python -m training.report`), on the
{len(photos.classes)} validation photographs, which were never trained on but chose the recipe.

| measure | value |
| --- | --- |
| top-1 | {measured.top1:.1%} (95 % interval {low:.1%} to {high:.1%}) |
| top-3 | {measured.top3:.1%} |
| expected calibration error, 10 bins, cross-fitted temperature | {measured.calibration_error:.1%} |
| nearest other embedding (cosine, class token) is of the same class | {measured.neighbour:.1%} |
| time an image: {_timing(network)} | {measured.milliseconds:.1f} ms |

| class | photographs | recall | precision | most often taken for |
| --- | --- | --- | --- | --- |
{_class_table(measured.confusion, photos.labels)}

Known confusions: {_confusions(measured.confusion, photos.labels)}.

## Data and licence

Photographs: [alexeygrigorev/clothing-dataset-small](https://github.com/alexeygrigorev/clothing-dataset-small)
(CC0 1.0), scaled to a short side of 160 px: 3,068 for training, 341 for validation. Its `test/` folder was neither
fetched nor looked at. Beside them the training images of
[Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) (MIT). The weights are released under the
project's licence, Apache-2.0.

## Recipe

{recipe.strip()}

## What it is not for

Anything but photographs of a single garment, laid out, hung or worn: it has no class for "something else" and will
name a garment in every picture. It learned from few photographs; do not decide anything about people with it. For
serious use load a released ViM or train your own.
"""


def _timing(network: model.Vim) -> str:
    scan = network.scan_choice.name if network.scan_choice else "unknown"
    return f"batch 8, {torch.get_num_threads()} threads, scan `{scan}`, machine at load {os.getloadavg()[0]:.1f}"


def _class_table(confusion: Tensor, labels: tuple[str, ...]) -> str:
    rows = []
    for i, label in enumerate(labels):
        truth, guessed, hits = (int(n) for n in (confusion[i].sum(), confusion[:, i].sum(), confusion[i, i]))
        wrong = confusion[i].clone()
        wrong[i] = 0
        taken_for = f"{labels[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.any() else "none"
        precision = f"{hits / guessed:.0%}" if guessed else "never guessed"
        rows.append(f"| {label} | {truth} | {hits / truth:.0%} | {precision} | {taken_for} |")
    return "\n".join(rows)


def _confusions(confusion: Tensor, labels: tuple[str, ...]) -> str:
    both = confusion + confusion.T
    pairs = sorted(((int(both[i, j]), i, j) for i in range(len(labels)) for j in range(i)), reverse=True)
    return ", ".join(f"{labels[j]} / {labels[i]} ({count})" for count, i, j in pairs[:5])


if __name__ == "__main__":
    main()
