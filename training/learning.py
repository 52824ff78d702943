"""The training loop of one worker process, from its share of every batch to the log of every epoch."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.data import Photos, read_classes, read_photos, serving_batch
from training.fashion_mnist import FashionMnist
from training.fresh_views import FreshViews
from training.recipe import Paths, Phase, Recipe
from training.state import State, average, next_phase, resume, save
from training.student import Outputs, Student
from training.teacher import MAP_SIDE, teacher_for
from training.views import AXES, MARGIN, STORED, WIDE, ViewBatch, Views, read_views, scale_views

LOG = "training_log.csv"

BatchSource = FreshViews | Views

_started = time.monotonic()


def learn(rank: int, recipe: Recipe, paths: Paths) -> None:
    """Run one worker: train on its own batches, average weights with the others, log if it is the first."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{paths.cache / 'meeting'}", rank=rank, world_size=recipe.workers)
    validation = read_photos(paths.archive, "validation")
    classes = read_classes(paths.archive, "train")
    grey = FashionMnist(paths.grey, validation.labels) if paths.grey else None
    state = resume(recipe, paths.cache, len(validation.labels), paths.start)
    while state.phase < len(recipe.phases):
        phase = recipe.phases[state.phase]
        source = _source(recipe, paths, phase)
        images = serving_batch(validation.images, phase.size)
        while state.epoch < phase.epochs:
            started = time.process_time()  # without the time of other processes
            loss = _run_epoch(recipe, phase, state, source, classes, grey)
            state.epoch += 1
            if rank == 0:
                checked = state.epoch % recipe.check_every == 0 or state.epoch == phase.epochs
                accuracy = _accuracy(state, images, validation) if checked else None
                _log(paths.out / LOG, state, phase, loss, accuracy, time.process_time() - started)
                save(state, paths.cache / "checkpoint.pt")
        if rank == 0:
            save(state, paths.cache / f"phase_{state.phase}_{phase.size}px.pt")
        state = next_phase(recipe, state, len(validation.labels))
    dist.barrier()
    dist.destroy_process_group()


def _source(recipe: Recipe, paths: Paths, phase: Phase) -> BatchSource:
    """Return the source of this phase's batches."""
    if phase.fresh is None:
        return _shared_views(recipe, paths.cache, phase)
    photos = read_photos(paths.archive, "train")
    teacher = teacher_for(paths.cache, recipe.teacher, photos, photos)
    return FreshViews(teacher, photos, paths.cache / AXES, phase.fresh)


def _shared_views(recipe: Recipe, cache: Path, phase: Phase) -> Views:
    """Let one worker scale the views; all workers map the same file."""
    numbers, size = recipe.numbers(phase.wide), min(WIDE if phase.wide else STORED, round(phase.size * MARGIN))
    if dist.get_rank() == 0:
        scale_views(cache, numbers, size)
    dist.barrier()
    return read_views(cache, numbers, size, phase.wide)


def _run_epoch(
    recipe: Recipe, phase: Phase, state: State, source: BatchSource, classes: Tensor, grey: FashionMnist | None
) -> float:
    """Local SGD: every worker takes its own steps; after every few steps the workers' weights are averaged."""
    rank = dist.get_rank()
    seed = recipe.seed * 100_000 + state.phase * 1_000 + state.epoch
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    steps = len(order) // (recipe.batch * recipe.workers)
    batches = order[: steps * recipe.batch * recipe.workers].view(steps, recipe.workers, recipe.batch)
    parameters = list(state.student.parameters())
    losses = []
    for i in range(steps):
        _set_rate(state.optimizer, phase.rate(state.epoch + i / steps))
        rng = torch.Generator().manual_seed((seed * 1_000 + i) * 10 + rank)
        state.optimizer.zero_grad()
        chosen = batches[i, rank]
        seen = source.batch(chosen, phase.size, rng)
        others = grey.batch(recipe.grey, phase.size, rng) if grey and phase.fresh else None
        loss = _loss(recipe, state.student, seen, classes[chosen], others)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        state.optimizer.step()
        state.steps += 1
        losses.append(loss.item())
        if (i + 1) % recipe.average_every == 0 or i + 1 == steps:
            _average_over_workers(parameters)
            average(state, recipe.average ** ((i % recipe.average_every) + 1))
            _progress(phase, state, i + 1, steps, losses)
    _average_over_workers([moment for p in parameters for moment in _moments(state.optimizer, p)])
    return sum(losses) / len(losses)


@torch.no_grad()
def _average_over_workers(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the workers."""
    together = torch.cat([t.detach().flatten() for t in tensors])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    parts = torch.split(together, [t.numel() for t in tensors])
    torch._foreach_copy_([t.detach() for t in tensors], [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[Tensor, Tensor]:
    state = optimizer.state[parameter]
    return state["exp_avg"], state["exp_avg_sq"]


def _loss(
    recipe: Recipe, student: Student, seen: ViewBatch, classes: Tensor, grey: tuple[Tensor, Tensor] | None
) -> Tensor:
    count, temperature = len(classes), recipe.temperature
    side = 0 if seen.middle is None else seen.middle.shape[1]
    answers: Outputs = student(seen.images if grey is None else torch.cat((seen.images, grey[0])), MAP_SIDE, side)
    logits, pooled, maps, features = (part[:count] for part in answers[:4])
    loss = temperature**2 * F.cross_entropy(logits / temperature, (seen.logits / temperature).softmax(1))
    hard = F.cross_entropy(logits, classes, reduction="none")
    loss = loss + recipe.hard_label * hard.where(~seen.mixed, 0.0).mean()
    loss = loss + recipe.teacher_pooled * (1 - F.cosine_similarity(pooled, seen.pooled, dim=-1)).mean()
    loss = loss + recipe.similarity * F.mse_loss(cosine_similarities(features), cosine_similarities(seen.pooled))
    loss = loss + recipe.teacher_map * F.smooth_l1_loss(maps, seen.maps)
    if seen.middle is not None and answers.middle is not None:
        loss = loss + recipe.teacher_middle * F.smooth_l1_loss(answers.middle[:count], seen.middle)
    if grey is not None:
        loss = loss + recipe.grey_label * F.cross_entropy(answers.logits[count:], grey[1])
    return loss


def cosine_similarities(features: Tensor) -> Tensor:
    """(n, D) -> (n, n): the cosine of every pair of features."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _accuracy(state: State, images: Tensor, photos: Photos) -> float:
    """Return the top-1 accuracy of the averaged weights on the validation photographs."""
    current = {name: value.clone() for name, value in state.student.state_dict().items()}
    state.student.load_state_dict(state.averaged)
    logits = torch.cat([state.student(batch, MAP_SIDE)[0] for batch in torch.split(images, 32)])
    state.student.load_state_dict(current)
    return (logits.argmax(1) == photos.classes).float().mean().item()


def _log(path: Path, state: State, phase: Phase, loss: float, accuracy: float | None, seconds: float) -> None:
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(("phase", "size", "epoch", "loss", "validation_top1", "seconds"))
        shown = "" if accuracy is None else f"{accuracy:.4f}"
        writer.writerow((state.phase, phase.size, state.epoch, f"{loss:.4f}", shown, f"{seconds:.1f}"))
    print(f"  validation {accuracy:.1%}  {seconds:.0f} s" if accuracy is not None else "", flush=True)


def _progress(phase: Phase, state: State, done: int, total: int, losses: list[float]) -> None:
    if dist.get_rank():
        return
    bar = ("#" * (20 * done // total)).ljust(20, ".")
    mean = sum(losses[-20:]) / len(losses[-20:])
    where = f"{phase.size} px epoch {state.epoch + 1:3d}/{phase.epochs}"
    print(f"\r{time.monotonic() - _started:5.0f} s {where} [{bar}] loss {mean:.3f}", end="", flush=True)
