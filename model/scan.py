"""The selective scan: its signature, and the choice of a backend by name.

    h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t        dt = softplus(delta + delta_bias), h before the first token = 0
    y_t = <h_t, C_t> + D u_t                         Mamba (arXiv 2312.00752) eq. 2a, 2b, discretised as its section 3.6

Shapes: S directions (1 or 2), B images, L tokens, E channels, N states.

    u, delta        (S, B, L, E)   delta before bias and softplus
    A               (S, E, N)      negative, at least float32
    B, C            (S, B, L, N)
    D, delta_bias   (S, E)
    z               (B, L, E)      gate, before SiLU
    returns         (B, L, E)      silu(z) times the sum of y over the directions, in the dtype of u

All tensors are in token order: direction 0 runs from the first token to the last, direction 1 from the last to the
first. No backend halves the sum of the directions; the mixer does that.

Backends are registered by module name and imported when they are chosen, so this module imports none of them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.conv import ConvFn, causal_conv
from model.errors import ScanError

log = logging.getLogger("vim.model")

ScanFn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ScanChoice:
    """A scan that runs on the device: its name, the function, the reason for the choice, and its convolution.

    `path` says whether all layers run as one fused function (`model.backends.fusion`) or are composed of torch modules,
    the convolution and the scan, and why.
    """

    name: str
    fn: ScanFn
    why: str
    conv: ConvFn = causal_conv
    path: str = "composed"


# Fastest first: `auto` takes the first one that supports the device. Each module defines `scan` and
# `unavailable(device)`, and may define its own `causal_conv` (see `model.conv`).
BACKENDS = {
    "triton": "model.backends.triton.scan",
    "mamba_ssm": "model.backends.mamba_ssm",
    "numba": "model.backends.cpu.scan",
    "torch": "model.backends.torch_scan",
    "reference": "model.backends.reference",
}

NAMES = tuple(BACKENDS)


def names_on(device: torch.device) -> tuple[str, ...]:
    """Return the names of the scans that run on `device`, fastest first."""
    return tuple(name for name in NAMES if _unavailable(name, device) is None)


def choose(name: str, device: torch.device, *, skip: tuple[str, ...] = ()) -> ScanChoice:
    """Return the scan called `name`; for `auto` the fastest one that runs on `device` and is not in `skip`.

    Raises ScanError with the reason and, if there is one, the command that fixes it.
    """
    if name == "auto":
        return _choose_fastest(device, skip)
    if name not in BACKENDS:
        raise ScanError(f"unknown scan {name!r}; known: auto, {', '.join(NAMES)}")
    reason = _unavailable(name, device)
    if reason is not None:
        raise ScanError(f"scan {name!r} cannot run on {device}: {reason}")
    return _choice_of(name, "selected by name")


def _choose_fastest(device: torch.device, skip: tuple[str, ...]) -> ScanChoice:
    passed_over = [f"{name}: failed its self-test" for name in skip]
    for name in NAMES:
        if name in skip:
            continue
        reason = _unavailable(name, device)
        if reason is None:
            why = f"fastest that runs on {device.type}" + "".join(f"; not {text}" for text in passed_over)
            log.info("scan %s: %s", name, why)
            return _choice_of(name, why)
        passed_over.append(f"{name}: {reason}")
    raise ScanError(f"no scan runs on {device}: {'; '.join(passed_over)}")


def _unavailable(name: str, device: torch.device) -> str | None:
    reason: str | None = importlib.import_module(BACKENDS[name]).unavailable(device)
    return reason


def _choice_of(name: str, why: str) -> ScanChoice:
    module = importlib.import_module(BACKENDS[name])
    return ScanChoice(name, module.scan, why, getattr(module, "causal_conv", causal_conv))
