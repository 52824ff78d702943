"""Does a scan compute the right numbers on this machine? Asked once at start-up, before anything is served.

A kernel can build and run and still be wrong (a mismatched extension, a new GPU); `auto` then takes the next one.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from model.config import VimConfig
from model.errors import ScanError
from model.scan import ScanChoice, ScanFn, choose, reference

log = logging.getLogger("vim.model")

IMAGES, TOKENS = 2, 37
# Largest error allowed, as a part of the largest value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def choose_verified(name: str, config: VimConfig, device: torch.device, dtype: torch.dtype) -> ScanChoice:
    """`model.scan.choose`, but the scan has shown that it agrees with the reference loop in float64.

    Raises ScanError when an explicitly named scan disagrees, or when none is left for `auto`.
    """
    wrong: tuple[str, ...] = ()
    while True:
        choice = choose(name, device, skip=wrong)
        error = largest_error(choice.fn, config, device, dtype)
        if error <= TOLERANCE[dtype]:
            log.info("scan %s agrees with the reference loop: relative error %.1e in %s", choice.name, error, dtype)
            return choice
        complaint = f"scan {choice.name!r} gives wrong numbers on {device}: relative error {error:.1e} in {dtype}"
        if name != "auto":
            raise ScanError(f"{complaint}; choose another scan (auto takes the next one that is right)")
        log.error("%s; trying the next one", complaint)
        wrong += (choice.name,)


def largest_error(scan: ScanFn, config: VimConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Largest |scan - reference in float64| over the largest reference value; infinite when not finite."""
    inputs = _example(config, dtype)
    expected = reference.scan(*(x.double() for x in inputs))
    found = scan(*(x.to(device) for x in inputs)).cpu().double()
    error = float((found - expected).abs().max() / expected.abs().max())
    return error if error == error else float("inf")


def _example(config: VimConfig, dtype: torch.dtype) -> list[Tensor]:
    """Seeded inputs at the model's own widths, rounded to `dtype` where a model of that dtype would round."""
    directions = 1 if config.bimamba == "none" else 2
    generator = torch.Generator().manual_seed(0)
    per_token = (directions, IMAGES, TOKENS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    activations = [normal(*per_token, config.d_inner), 2 * normal(*per_token, config.d_inner)]
    matrices = [normal(*per_token, config.d_state) for _ in "BC"]
    gate = normal(IMAGES, TOKENS, config.d_inner)
    u, delta, B, C, z = (x.to(dtype) for x in (*activations, *matrices, gate))
    wide = torch.promote_types(dtype, torch.float32)
    A = -torch.exp(normal(directions, config.d_inner, config.d_state)).to(wide)
    D, bias = (normal(directions, config.d_inner).to(wide) for _ in range(2))
    return [u, delta, A, B, C, D, z, bias - 2]
