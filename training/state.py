"""The state of the demo model's training: created, moved to the next phase, saved and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import VimConfig
from training.recipe import Recipe
from training.student import Student, resized
from training.views import MAP_WIDTH, POOLED_WIDTH


@dataclass
class State:
    """The content of a training checkpoint."""

    student: Student
    averaged: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    phase: int
    epoch: int
    steps: int


def _groups(student: Student, decay: float) -> list[dict[str, Any]]:
    """As in the reference: no weight decay for vectors, position embedding and class token."""
    plain = [p for n, p in student.named_parameters() if p.ndim <= 1 or n.endswith(("pos_embed", "cls_token"))]
    chosen = {id(p) for p in plain}
    return [
        {"params": [p for p in student.parameters() if id(p) not in chosen], "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def fresh(recipe: Recipe, phase: int, classes: int) -> State:
    """Return a new student of this phase's image size, with the reference's initialisation."""
    torch.manual_seed(recipe.seed)
    config = recipe.config(recipe.phases[phase].size, classes)
    student = Student(config, POOLED_WIDTH, MAP_WIDTH)
    optimizer = torch.optim.AdamW(_groups(student, recipe.weight_decay), betas=(0.9, 0.99), fused=True)
    averaged = {name: value.clone() for name, value in student.state_dict().items()}
    return State(student, averaged, optimizer, phase, epoch=0, steps=0)


def next_phase(recipe: Recipe, done: State, classes: int) -> State:
    """Start the next phase from the averaged weights, with a new optimizer."""
    if done.phase + 1 == len(recipe.phases):
        done.phase += 1
        return done
    state = fresh(recipe, done.phase + 1, classes)
    weights = resized(done.averaged, done.student.vim.config, state.student.vim.config)
    state.student.load_state_dict(weights)
    state.averaged = {name: value.clone() for name, value in weights.items()}
    state.steps = done.steps
    return state


def save(state: State, path: Path) -> None:
    """Write a checkpoint; an interruption leaves the previous one."""
    content = {
        "student": state.student.state_dict(),
        "averaged": state.averaged,
        "optimizer": state.optimizer.state_dict(),
        "progress": (state.phase, state.epoch, state.steps),
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def resume(recipe: Recipe, cache: Path, classes: int, start: Path | None = None) -> State:
    """Continue from the cache's checkpoint; without one start the entry phase from `start`, or from random weights."""
    path = cache / "checkpoint.pt"
    if not path.exists():
        return started(recipe, start, classes) if start else fresh(recipe, 0, classes)
    content = torch.load(path, weights_only=True)
    phase, epoch, steps = content["progress"]
    state = fresh(recipe, phase, classes)
    state.student.load_state_dict(content["student"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.averaged, state.epoch, state.steps = content["averaged"], epoch, steps
    if epoch == recipe.phases[phase].epochs:
        return next_phase(recipe, state, classes)
    return state


def started(recipe: Recipe, directory: Path, classes: int) -> State:
    """Return the entry phase with the weights of a model directory; the heads for the teacher are new."""
    state = fresh(recipe, recipe.entry, classes)
    known = {f"vim.{name}": value for name, value in load_file(directory / "model.safetensors").items()}
    known = resized(known, VimConfig.read(directory / "config.json"), state.student.vim.config)
    state.student.load_state_dict(state.student.state_dict() | known)
    state.averaged = {name: value.clone() for name, value in state.student.state_dict().items()}
    return state


@torch.no_grad()
def average(state: State, decay: float) -> None:
    """Update the moving average with the current weights; faster in the first steps."""
    decay = min(decay, (1 + state.steps) / (10 + state.steps))
    current = state.student.state_dict()
    torch._foreach_lerp_([state.averaged[name] for name in current], list(current.values()), 1 - decay)
