"""Stand-ins for a dry run without a GPU: plain torch replaces the compiled modules and the device."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import deit
from model.backends import fusion, mamba_ssm, reference, selftest
from model.backends.triton import launch
from model.backends.triton import support as triton_support
from model.runtime.cuda import runner
from model.runtime.cuda.accelerator import Array, Work


class Immediate:
    """A `model.runtime.cuda.accelerator.Accelerator` on the CPU that runs all work immediately."""

    device = torch.device("cpu")

    def stream(self) -> None:
        """Return nothing: there is one stream."""

    def record(self, stream: None) -> None:
        """Return nothing: all work is done."""

    def wait(self, stream: None, event: None) -> None:
        """Do nothing: all work is done."""

    def synchronize(self, event: None) -> None:
        """Do nothing: all work is done."""

    def copy(self, stream: None, target: Tensor, source: Tensor) -> None:
        """Copy immediately."""
        target.copy_(source)

    def run(self, stream: None, work: Work) -> None:
        """Run the work immediately."""
        work()

    def capture(self, stream: None, work: Work) -> Work:
        """Return the work as its own graph."""
        return work

    def replay(self, stream: None, graph: Work) -> None:
        """Run the work immediately."""
        graph()

    def page_lock(self, memory: Array) -> str | None:
        """Do nothing: a CPU needs no page-locked memory."""
        return None

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate zeros."""
        return torch.zeros(shape, dtype=dtype)

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate zeros."""
        return torch.zeros(shape, dtype=dtype)

    def peak_of(self, work: Work) -> int:
        """Run the work; its memory is not measured."""
        work()
        return 1

    def free(self) -> int:
        """Return more bytes than any run needs."""
        return 1 << 60

    def wait_and_free(self) -> None:
        """Do nothing: all work is done."""

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return nothing: a CPU has no memory of its own."""
        return {}


def install() -> None:
    """Make modules with the signatures of mamba-ssm's and causal-conv1d's importable, and all scans available.

    Triton's kernels are interpreted, so self-tests and depths are made small.
    """
    scan, conv = ModuleType("selective_scan_cuda"), ModuleType("causal_conv1d_cuda")
    scan.fwd, conv.causal_conv1d_fwd = _scan, _conv  # type: ignore[attr-defined]
    sys.modules |= {scan.__name__: scan, conv.__name__: conv}
    mamba_ssm.unavailable = triton_support.unavailable = lambda device: None
    selftest.IMAGES, selftest.MOST_TOKENS = 1, 2
    fusion.IMAGES, fusion.TOKENS, fusion.LAYERS = 1, 2, 1
    runner.TIMED, deit.DEPTH = 1, 1
    vars(launch)["candidates"] = _candidates


def _candidates(*_: Any) -> list[launch.Tile]:
    """Two tiles that run and one that cannot."""
    return [launch.Tile(tokens, 32, 4) for tokens in (16, 32, 24)]


def _scan(*arguments: Any) -> list[Tensor]:
    """`selective_scan_cuda.fwd` by the reference implementation, group by group: [out, chunk states, out_z]."""
    u, delta, A, B, C, D, z, bias, _ = arguments
    groups, channels = B.shape[1], u.shape[1] // B.shape[1]
    gate = torch.full_like(u, 50.0) if z is None else z  # silu(50) is 50 to the last digit
    parts = []
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        u_g, delta_g = (part[:, own].mT[None] for part in (u, delta))
        B_g, C_g = (part[:, group].mT[None] for part in (B, C))
        wide = (A[None, own], D[None, own], bias[None, own])
        y = reference.scan(u_g, delta_g, wide[0], B_g, C_g, wide[1], gate[:, own].float().mT, wide[2])
        parts.append(y.mT.float())
    out = torch.cat(parts, dim=1)
    return [(out / 50).to(u.dtype), u, out.to(u.dtype)]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
    """`causal_conv1d_cuda.causal_conv1d_fwd` with SiLU, into `out`."""
    out, width = rest[2], weight.shape[1]
    y = F.conv1d(F.pad(x.to(weight.dtype), (width - 1, 0)), weight[:, None], bias, groups=len(weight))
    out.copy_(F.silu(y))
