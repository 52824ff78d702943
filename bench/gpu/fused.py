"""One fused layer's kernels on seeded inputs, and fused layers beside plain torch in float64 on the same device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.cases import Plan, random_model
from model.backends.selftest import relative_error
from model.backends.triton.tiles import Tile
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

    def launches(self, shape: Tile | None = None) -> dict[str, Callable[[], object]]:
        """Return the layer's launches by name; with a tile of `launch.candidates`, or with those of the service."""
        from model.backends.triton import launch

        device, length = launch.Device.of(self.device), self.xz.shape[1]
        pieces = -(-length // shape.tokens) if shape and shape.tokens else self._pieces()
        residual = self.tokens.float()
        return {
            "first_norm": lambda: launch.first_norm(self.tokens, self.norm, EPSILON),
            "in_proj": lambda: F.linear(self.tokens, self.weights.in_proj),
            "project": lambda: launch.project(self.xz, self.weights, shape),
            "scan": lambda: launch.scan(self.xz, self.dbc, self.weights, pieces),
            "out_project": lambda: launch.out_project(
                self.y, self.xz, self.weights, residual, self.norm, EPSILON, device, shape
            ),
        }

    def _pieces(self) -> int:
        from model.backends.triton import launch

        return launch.plan(self.xz, self.tokens.shape[-1], launch.Device.of(self.device)).pieces


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
def largest_error(
    plan: Plan, name: str, dtype: torch.dtype, images: int, length: int = 0, variant: int | None = None
) -> float:
    """Relative error of fused layers against float64; infinite for values that are not finite."""
    vim, run, tokens = encoder(plan, name, dtype, images, length, variant)
    found = run(tokens)
    return relative_error(found, exact(plan, vim).encode(tokens.double()).cpu())


def encoder(
    plan: Plan, name: str, dtype: torch.dtype, images: int, length: int = 0, variant: int | None = None
) -> tuple[Vim, EncoderFn, Tensor]:
    """Return a model of few layers, these layers fused, and `length` tokens of each image, or as many as it has.

    `variant` is the number of one of `launch.variants`; None launches as the service does.
    """
    from model.backends.triton import launch
    from model.backends.triton.encoder import encoder as fused

    config = plan.config(name, depth=LAYERS, num_classes=0)
    vim = random_model(config, plan.device).cast(dtype)
    shape = images, length or config.seq_len, config.embed_dim
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    way = None
    if variant is not None:
        way = launch.variants(config.embed_dim, shape[1], dtype, launch.Device.of(plan.device))[variant]
    return vim, fused(vim, way), tokens.to(plan.device, dtype)


def exact(plan: Plan, vim: Vim) -> Vim:
    """Convert a model to float64 with the plain torch scan, in place."""
    vim.use_scan(choose("torch", plan.device))
    return vim.double()
