"""What training reads: every view of every photograph, with the teacher's features and the class it would say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Every view of every training photograph: pixels, and what the teacher made of them. First axis: the view."""

    pixels: Tensor  # (K, n, H, W, 3) uint8
    pooled: Tensor  # (K, n, 1280), unit length
    maps: Tensor  # (K, n, 5, 5, 128)
    labels: Tensor  # (K, n, classes): the teacher's opinion of photographs that its probe has not seen
    classes: Tensor  # (n,)


def read_views(cache: Path, classes: Tensor, count: int) -> Views:
    """Load what `tools.demo_teacher` has written and fit the teacher's probe."""
    stored = [np.load(path) for path in sorted(cache.glob("view_*.npz"))]
    pixels, pooled, maps = (torch.stack([torch.from_numpy(s[k]) for s in stored]) for k in ("pixels", "pooled", "maps"))
    pooled = F.normalize(pooled.float(), dim=-1)
    kept = cache / f"labels_{len(stored)}.pt"
    if not kept.exists():
        torch.save(probe_labels(pooled, classes, count), kept)
    return Views(pixels, pooled, maps.float(), torch.load(kept, weights_only=True), classes)


def probe_labels(pooled: Tensor, classes: Tensor, count: int, folds: int = 5) -> Tensor:
    """Class probabilities (K, n, classes) by logistic regression on the teacher's features of the other folds."""
    labels = torch.empty(*pooled.shape[:2], count)
    fold = torch.arange(len(classes)) % folds
    for held in range(folds):
        weight, bias = fit_probe(
            pooled[:, fold != held].flatten(0, 1), classes[fold != held].repeat(len(pooled)), count
        )
        labels[:, fold == held] = (pooled[:, fold == held] @ weight + bias).softmax(-1)
    return labels


def fit_probe(features: Tensor, classes: Tensor, count: int, penalty: float = 2e-5) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty."""
    weight = torch.zeros(features.shape[1], count, requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, classes) + penalty * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
