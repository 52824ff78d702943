"""Self-test at start-up: check that a scan computes the right numbers on this machine.

A kernel may build and run and still be wrong (a mismatched extension, a new GPU). `auto` then takes the next scan.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from model import conv
from model.backends import reference
from model.config import VimConfig
from model.errors import ScanError
from model.scan import ScanChoice, ScanFn, choose

log = logging.getLogger("vim.model")


# implementation is slow.
IMAGES, MOST_TOKENS = 2, 8192
# Largest allowed error, relative to the largest value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
FAST_MATH = 1e-4  # in float32 on a GPU, whose exp and log have errors of a few 1e-6


def choose_verified(name: str, config: VimConfig, device: torch.device, dtype: torch.dtype) -> ScanChoice:
    """`model.scan.choose`, limited to scans that agree with the reference implementation in float64 on this device.

    Raises ScanError when a scan that was chosen by name disagrees, or when no scan is left for `auto`.
    """
    wrong: tuple[str, ...] = ()
    while True:
        choice = choose(name, device, skip=wrong)
        complaint = _complaint(choice, config, device, dtype)
        if complaint is None:
            return choice
        if name != "auto":
            raise ScanError(f"{complaint}; choose another scan (auto takes the next one that is right)")
        log.error("%s; trying the next one", complaint)
        wrong += (choice.name,)


def _complaint(choice: ScanChoice, config: VimConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a scan or its convolution, or None."""
    try:
        error = max(
            largest_error(choice.fn, config, device, dtype), largest_conv_error(choice.conv, config, device, dtype)
        )
    except Exception as failure:  # "no kernel image": compiled for other GPUs; a kernel that Triton cannot build
        return f"scan {choice.name!r} does not run on {device}: {failure}"
    if error <= tolerance(device, dtype):
        log.info("scan %s agrees with the reference loop: relative error %.1e in %s", choice.name, error, dtype)
        return None
    return f"scan {choice.name!r} gives wrong numbers on {device}: relative error {error:.1e} in {dtype}"


def tolerance(device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest allowed error, relative to the largest value."""
    return FAST_MATH if device.type == "cuda" and dtype == torch.float32 else TOLERANCE[dtype]


def largest_conv_error(causal_conv: conv.ConvFn, config: VimConfig, device: torch.device, dtype: torch.dtype) -> float:
    """As `largest_error`, for a backend's convolution against torch's in float64 on the CPU."""
    if causal_conv is conv.causal_conv:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    directions, tokens = 2 if config.bimamba == "v2" else 1, min(config.seq_len, MOST_TOKENS)
    shapes = (IMAGES, tokens, config.d_inner), (directions, config.d_inner, config.d_conv), (directions, config.d_inner)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return relative_error(causal_conv(*(x.to(device) for x in inputs)), conv.causal_conv(*(x.double() for x in inputs)))


def largest_error(scan: ScanFn, config: VimConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Largest |scan - reference in float64| divided by the largest reference value; infinite if not finite."""
    inputs = example_inputs(config, dtype)
    expected = reference.scan(*(x.double() for x in inputs))
    return relative_error(scan(*(x.to(device) for x in inputs)), expected)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference divided by the largest expected value; infinite for values that are not finite."""
    error = float((found.cpu().double() - expected).abs().max() / expected.abs().max())
    return error if error == error else float("inf")


def example_inputs(config: VimConfig, dtype: torch.dtype) -> list[Tensor]:
    """Return seeded inputs of the scan, in its order, at the model's own widths.

    Activations are rounded to `dtype`; A, D and the bias stay at least float32, as in a model of that dtype.
    """
    directions = 1 if config.bimamba == "none" else 2
    generator = torch.Generator().manual_seed(0)
    per_token = (directions, IMAGES, min(config.seq_len, MOST_TOKENS))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    activations = [normal(*per_token, config.d_inner), 2 * normal(*per_token, config.d_inner)]
    matrices = [normal(*per_token, config.d_state) for _ in "BC"]
    gate = normal(*per_token[1:], config.d_inner)
    u, delta, B, C, z = (x.to(dtype) for x in (*activations, *matrices, gate))
    wide = torch.promote_types(dtype, torch.float32)
    A = -torch.exp(normal(directions, config.d_inner, config.d_state)).to(wide)
    D, bias = (normal(directions, config.d_inner).to(wide) for _ in range(2))
    return [u, delta, A, B, C, D, z, bias - 2]
