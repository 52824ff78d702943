"""Train the demo model: `python -m tools.train_demo --data ZIP --out models/demo`.

A small Vision Mamba learns from the photographs and from what an ImageNet network sees in them (`tools.demo_teacher`,
computed first and kept in the cache). Phases of growing image size; after every epoch a checkpoint is written to the
cache, so the same command resumes after an interruption. At the end the moving average of the weights is written as a
model directory and measured as served.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tools.demo_data import Photos, augment, normalised, read_photos, serving_batch
from tools.demo_recipe import CORES, Phase, Recipe, recipe_text
from tools.demo_report import report
from tools.demo_student import Student, dice, resized
from tools.demo_teacher import write_views
from tools.demo_views import Views, read_views
from tools.heap import keep_freed_memory

POOLED_WIDTH = 1280
MAP_WIDTH = 128
PARTS = CORES
LOG = "training_log.csv"

_pool = ThreadPoolExecutor(PARTS)
_started = time.monotonic()


@dataclass
class State:
    """What a checkpoint holds."""

    student: Student
    averaged: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    phase: int
    epoch: int
    steps: int


def main() -> None:
    """Parse the command line, train, write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip with train/ and validation/<class>/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo_cache"), help="views, teacher, checkpoints")
    parser.add_argument("--teacher-packages", type=Path, help="folder with the teacher's packages, if not installed")
    args = parser.parse_args()
    if args.teacher_packages:
        sys.path.append(str(args.teacher_packages))
    keep_freed_memory()
    torch.set_num_threads(PARTS)
    train(Recipe(), args.data, args.out, args.cache)


def train(recipe: Recipe, archive: Path, out: Path, cache: Path) -> None:
    """Run the phases that the cache's checkpoint has not finished."""
    write_views(archive, cache, recipe.views, recipe.seed)
    validation = read_photos(archive, "validation")
    views = read_views(cache, read_photos(archive, "train").classes, len(validation.labels))
    state = _resume(recipe, cache, len(validation.labels))
    while state.phase < len(recipe.phases):
        phase = recipe.phases[state.phase]
        images = serving_batch(validation.images, phase.size)
        while state.epoch < phase.epochs:
            started = time.monotonic()
            loss = _run_epoch(recipe, phase, state, views)
            state.epoch += 1
            accuracy = _accuracy(state, images, validation)
            _log(out / LOG, state, phase, loss, accuracy, time.monotonic() - started)
            _save(state, cache / "checkpoint.pt")
        _save(state, cache / f"phase_{state.phase}_{phase.size}px.pt")
        state = _next_phase(recipe, state, len(validation.labels))
    write_model(state, out, validation.labels)
    report(archive, out, recipe_text(recipe, out / LOG))


def write_model(state: State, out: Path, labels: tuple[str, ...]) -> None:
    """Write the averaged weights as a model directory."""
    weights = {n.removeprefix("vim."): v.contiguous() for n, v in state.averaged.items() if n.startswith("vim.")}
    state.student.vim.config.save(out / "config.json")
    save_file(weights, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    (out / "labels.json").write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")


def _run_epoch(recipe: Recipe, phase: Phase, state: State, views: Views) -> float:
    seed = recipe.seed * 100_000 + state.phase * 1_000 + state.epoch
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(views.classes), generator=rng)
    batches = torch.split(order[: len(order) // recipe.batch * recipe.batch], recipe.batch)
    state.student.train()
    losses = []
    for i, chosen in enumerate(batches):
        _set_rate(state.optimizer, phase.rate(state.epoch + i / len(batches)))
        loss = _accumulate(recipe, phase, state, views, chosen, seed * 1_000 + i)
        torch.nn.utils.clip_grad_norm_(state.student.parameters(), 2.0)
        state.optimizer.step()
        state.steps += 1
        _average(state, recipe.average)
        losses.append(loss)
        _progress(phase, state, i + 1, len(batches), losses)
    return sum(losses) / len(losses)


def _accumulate(recipe: Recipe, phase: Phase, state: State, views: Views, chosen: Tensor, seed: int) -> float:
    """Leave the batch's gradient in the parameters; every thread takes one part of the batch on one core."""
    parameters = list(state.student.parameters())
    mix = state.epoch < phase.mix_epochs

    def one_part(part: Tensor, number: int) -> tuple[float, tuple[Tensor, ...]]:
        torch.set_num_threads(1)
        rng = torch.Generator().manual_seed(seed * 10 + number)
        dice.rng = rng
        loss = _loss(recipe, phase, state.student, views, part, rng, mix=mix)
        return loss.item(), torch.autograd.grad(loss, parameters)

    parts = torch.split(chosen, len(chosen) // PARTS)
    results = list(_pool.map(one_part, parts, range(PARTS)))
    for parameter, *grads in zip(parameters, *(grads for _, grads in results), strict=True):
        parameter.grad = torch.stack(grads).mean(0)
    return sum(loss for loss, _ in results) / PARTS


def _loss(
    recipe: Recipe, phase: Phase, student: Student, views: Views, chosen: Tensor, rng: torch.Generator, *, mix: bool
) -> Tensor:
    count = len(chosen)
    view = torch.randint(len(views.pixels), (count,), generator=rng)
    images = _shaken(views.pixels[view, chosen], phase.size, rng)
    maps, pooled = views.maps[view, chosen], views.pooled[view, chosen]
    hard = F.one_hot(views.classes[chosen], views.labels.shape[-1]).float()
    hard = hard * (1 - recipe.smoothing) + recipe.smoothing / hard.shape[1]
    target = hard * (1 - recipe.teacher_label) + views.labels[view, chosen] * recipe.teacher_label

    flip = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    images, maps = torch.where(flip, images.flip(3), images), torch.where(flip, maps.flip(2), maps)
    images = augment(images, rng)
    if mix and torch.rand(1, generator=rng) < phase.mix:
        other = torch.randperm(count, generator=rng)
        share = torch.rand(count, generator=rng)
        images, maps, pooled, target = (_mixed(x, other, share) for x in (images, maps, pooled, target))

    logits, guess_pooled, guess_map = student(images, maps.shape[1])
    loss = F.cross_entropy(logits, target)
    loss = loss + recipe.teacher_pooled * (1 - F.cosine_similarity(guess_pooled, pooled, dim=-1)).mean()
    return loss + recipe.teacher_map * F.smooth_l1_loss(guess_map, maps)


def _shaken(pixels: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Scale to a little more than `size` and cut a window; too small a shift to matter to the teacher's map."""
    larger = round(size * 1.1)
    channels_first = pixels.permute(0, 3, 1, 2).float()
    images = F.interpolate(channels_first, (larger, larger), mode="bilinear", antialias=True)
    images = normalised(images.permute(0, 2, 3, 1))
    top, left = (int(n) for n in torch.randint(larger - size + 1, (2,), generator=rng))
    return images[:, :, top : top + size, left : left + size].contiguous()


def _mixed(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    share = share.view(-1, *[1] * (x.ndim - 1))
    return x * share + x[other] * (1 - share)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    decay = min(decay, (1 + state.steps) / (10 + state.steps))
    for name, value in state.student.state_dict().items():
        state.averaged[name].lerp_(value, 1 - decay)


@torch.inference_mode()
def _accuracy(state: State, images: Tensor, photos: Photos) -> float:
    """Top-1 of the averaged weights on the validation photographs."""
    student = state.student.eval()
    current = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(state.averaged)
    logits = torch.cat([student.vim(batch) for batch in torch.split(images, 32)])
    student.load_state_dict(current)
    return (logits.argmax(1) == photos.classes).float().mean().item()


def _groups(student: Student, decay: float) -> list[dict[str, Any]]:
    """As in the reference: no decay for vectors, position embedding and class token."""
    plain = [p for n, p in student.named_parameters() if p.ndim <= 1 or n.endswith(("pos_embed", "cls_token"))]
    chosen = {id(p) for p in plain}
    return [
        {"params": [p for p in student.parameters() if id(p) not in chosen], "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _fresh(recipe: Recipe, phase: int, classes: int) -> State:
    torch.manual_seed(recipe.seed)
    config = recipe.config(recipe.phases[phase].size, classes)
    student = Student(config, POOLED_WIDTH, MAP_WIDTH, recipe.drop_path)
    optimizer = torch.optim.AdamW(_groups(student, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    averaged = {name: value.clone() for name, value in student.state_dict().items()}
    return State(student, averaged, optimizer, phase, epoch=0, steps=0)


def _next_phase(recipe: Recipe, done: State, classes: int) -> State:
    """Grow: the averaged weights start the next phase with a fresh optimizer."""
    if done.phase + 1 == len(recipe.phases):
        done.phase += 1
        return done
    state = _fresh(recipe, done.phase + 1, classes)
    weights = resized(done.averaged, done.student.vim.config, state.student.vim.config)
    state.student.load_state_dict(weights)
    state.averaged = {name: value.clone() for name, value in weights.items()}
    state.steps = done.steps
    return state


def _save(state: State, path: Path) -> None:
    content = {
        "student": state.student.state_dict(),
        "averaged": state.averaged,
        "optimizer": state.optimizer.state_dict(),
        "progress": (state.phase, state.epoch, state.steps),
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def _resume(recipe: Recipe, cache: Path, classes: int) -> State:
    path = cache / "checkpoint.pt"
    if not path.exists():
        return _fresh(recipe, 0, classes)
    content = torch.load(path, weights_only=True)
    phase, epoch, steps = content["progress"]
    state = _fresh(recipe, phase, classes)
    state.student.load_state_dict(content["student"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.averaged, state.epoch, state.steps = content["averaged"], epoch, steps
    if epoch == recipe.phases[phase].epochs:
        return _next_phase(recipe, state, classes)
    return state


def _log(path: Path, state: State, phase: Phase, loss: float, accuracy: float, seconds: float) -> None:
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(("phase", "size", "epoch", "loss", "validation_top1", "seconds"))
        writer.writerow((state.phase, phase.size, state.epoch, f"{loss:.4f}", f"{accuracy:.4f}", f"{seconds:.1f}"))
    print(f"  validation {accuracy:.1%}  {seconds:.0f} s", flush=True)


def _progress(phase: Phase, state: State, done: int, total: int, losses: list[float]) -> None:
    bar = ("#" * (20 * done // total)).ljust(20, ".")
    mean = sum(losses[-20:]) / len(losses[-20:])
    where = f"{phase.size} px epoch {state.epoch + 1:3d}/{phase.epochs}"
    print(f"\r{time.monotonic() - _started:5.0f} s {where} [{bar}] loss {mean:.3f}", end="", flush=True)


if __name__ == "__main__":
    main()
