"""For a dry run on a machine without a GPU: the compiled modules and the device, replaced by plain torch at once."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backends import mamba_ssm, reference
from model.runtime.cuda.accelerator import Array, Work


class Immediate:
    """`model.runtime.cuda.accelerator.Accelerator` on the CPU: everything runs when it is asked for."""

    device = torch.device("cpu")

    def stream(self) -> None:
        """There is one."""

    def record(self, stream: None) -> None:
        """Everything has come."""

    def wait(self, stream: None, event: None) -> None:
        """Nothing to wait for."""

    def synchronize(self, event: None) -> None:
        """Nothing to wait for."""

    def copy(self, stream: None, target: Tensor, source: Tensor) -> None:
        """At once."""
        target.copy_(source)

    def run(self, stream: None, work: Work) -> None:
        """At once."""
        work()

    def capture(self, stream: None, work: Work) -> Work:
        """The work itself."""
        return work

    def replay(self, stream: None, graph: Work) -> None:
        """At once."""
        graph()

    def page_lock(self, memory: Array) -> str | None:
        """Nothing to lock."""
        return None

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, dtype=dtype)

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, dtype=dtype)

    def peak_of(self, work: Work) -> int:
        """Not measured."""
        work()
        return 1

    def free(self) -> int:
        """Plenty."""
        return 1 << 60

    def settle(self) -> None:
        """Nothing to settle."""

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """None of its own."""
        return {}


def install() -> None:
    """Importable modules with the signatures of mamba-ssm's and causal-conv1d's; the scan says it runs here."""
    scan, conv = ModuleType("selective_scan_cuda"), ModuleType("causal_conv1d_cuda")
    scan.fwd, conv.causal_conv1d_fwd = _scan, _conv  # type: ignore[attr-defined]
    sys.modules |= {scan.__name__: scan, conv.__name__: conv}
    mamba_ssm.unavailable = lambda device: None


def _scan(*arguments: Any) -> list[Tensor]:
    """`selective_scan_cuda.fwd` by the reference loop, group by group: [out, chunk states, out_z]."""
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
    out, taps = rest[2], weight.shape[1]
    y = F.conv1d(F.pad(x.to(weight.dtype), (taps - 1, 0)), weight[:, None], bias, groups=len(weight))
    out.copy_(F.silu(y))
