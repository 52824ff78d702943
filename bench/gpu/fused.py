"""One fused layer's kernels on seeded inputs, and fused layers beside plain torch in float64 on the same device."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.cases import Plan, random_model
from model.backends.selftest import relative_error
from model.backends.triton.weights import LayerWeights, prepare
from model.scan import choose
from model.vim import EncoderFn, Vim

LAYERS = 2
EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, and inputs for each of its kernels that no other kernel has computed."""

    device: torch.device
    weights: LayerWeights
    norm: Tensor
    tokens: Tensor  # (B, L, D)
    xz: Tensor  # (B, L, 2E)
    dbc: Tensor  # (2, B, L, 32 + R') float32
    y: Tensor  # (2, B, L, E)

    def launches(self, pieces: int | None = None) -> dict[str, Callable[[], object]]:
        """Return the layer's launches by name; the scan in so many pieces, or in those that are served."""
        from model.backends.triton import launch

        device = launch.Device.of(self.device)
        residual = self.tokens.float()

        def scan() -> Tensor:
            return launch.scan(self.xz, self.dbc, self.weights, pieces or self._pieces())

        return {
            "first_norm": lambda: launch.first_norm(self.tokens, self.norm, EPSILON),
            "in_proj": lambda: F.linear(self.tokens, self.weights.in_proj),
            "project": lambda: launch.project(self.xz, self.weights),
            "scan": scan,
            "out_project": lambda: launch.out_project(
                self.y, self.xz, self.weights, residual, self.norm, EPSILON, device
            ),
        }

    def _pieces(self) -> int:
        from model.backends.triton import launch

        device = launch.Device.of(self.device)
        if plan := getattr(launch, "plan", None):
            return int(plan(self.xz, self.tokens.shape[-1], device).pieces)
        return launch.chunks(self.xz.shape[1], launch.programs(self.xz), device.processors)


KERNELS = ("first_norm", "in_proj", "project", "scan", "out_project")


def layer(plan: Plan, name: str, images: int) -> Layer:
    """Return the layer of a released width in float16, for a batch."""
    config = plan.config(name, depth=1)
    vim = random_model(config, plan.device).cast(torch.float16)
    weights = prepare(vim.layers[0].mixer)  # type: ignore[arg-type]
    generator = torch.Generator(plan.device).manual_seed(1)

    def normal(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(*shape, generator=generator, device=plan.device).to(dtype)

    rows = images, config.seq_len
    return Layer(
        plan.device,
        weights,
        vim.norm_f.weight.detach().float(),
        normal(*rows, config.embed_dim),
        normal(*rows, 2 * config.d_inner),
        normal(2, *rows, 32 + weights.rank, dtype=torch.float32),
        normal(2, *rows, config.d_inner),
    )


@torch.inference_mode()
def largest_error(plan: Plan, name: str, dtype: torch.dtype, images: int, length: int = 0) -> float:
    """Relative error of fused layers against float64; infinite for values that are not finite."""
    vim, run, tokens = encoder(plan, name, dtype, images, length)
    found = run(tokens)
    return relative_error(found, exact(plan, vim).encode(tokens.double()).cpu())


def encoder(plan: Plan, name: str, dtype: torch.dtype, images: int, length: int = 0) -> tuple[Vim, EncoderFn, Tensor]:
    """Return a model of few layers, these layers fused, and `length` tokens of each image, or as many as it has."""
    from model.backends.triton.encoder import encoder as fused

    config = plan.config(name, depth=LAYERS, num_classes=0)
    vim = random_model(config, plan.device).cast(dtype)
    shape = images, length or config.seq_len, config.embed_dim
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return vim, fused(vim), tokens.to(plan.device, dtype)


def exact(plan: Plan, vim: Vim) -> Vim:
    """Convert a model to float64 with the plain torch scan, in place."""
    vim.use_scan(choose("torch", plan.device))
    return vim.double()


@contextmanager
def launched_with(**changes: Any) -> Iterator[None]:
    """Replace names of `launch`, or of `tiles` beside it. Raises AttributeError for a name that neither has."""
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(mock.patch.object(_home(name), name, value))
        yield


def chooser(kernel: str) -> str:
    """Return the name of the function that chooses the tile of a kernel."""
    from model.backends.triton import launch

    return "tile" if hasattr(launch, "tile") else {"project": "project_tile", "out_project": "out_tile"}[kernel]


@contextmanager
def tiles() -> Iterator[set[str]]:
    """Note the tiles that are chosen: a check of the large one must have seen it."""
    seen: set[str] = set()

    def noting(choose_tile: Callable[..., object]) -> Callable[..., object]:
        def chosen(*arguments: Any, **named: Any) -> object:
            tile = choose_tile(*arguments, **named)
            seen.add(str(tile))
            return tile

        return chosen

    names = {chooser(kernel) for kernel in ("project", "out_project")}
    with launched_with(**{name: noting(getattr(_home(name), name)) for name in names}):
        yield seen


def _home(name: str) -> ModuleType:
    from model.backends.triton import launch

    beside = importlib.util.find_spec("model.backends.triton.tiles")
    return launch if hasattr(launch, name) or beside is None else importlib.import_module(beside.name)
