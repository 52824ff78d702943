"""Fuse all layers of a Vim into one function, where the backend in use supports it; record which path runs and why.

A module in ENCODERS defines

    unsupported(vim)  None, or in a few words which configuration, dtype or device it does not support
    encoder(vim)      the function for `vim.encoder`, built once from weights in their final dtype on their final device

The function receives the tokens before the first layer and returns those after the final norm.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from types import ModuleType

import torch

from model.backends import reference, selftest
from model.config import VimConfig
from model.scan import ScanChoice
from model.vim import Vim

log = logging.getLogger("vim.model")

# Name of the scan -> module.
ENCODERS = {"triton": "model.backends.triton.encoder", "numba": "model.backends.cpu.encoder"}

IMAGES, TOKENS, LAYERS = 3, 37, 2
SLACK = 2  # factor on the scan's tolerance: a layer rounds its activations several times, a scan once


def fuse(vim: Vim) -> None:
    """Fuse the layers if the backend supports this model; `scan_choice.path` records the result.

    Call it last, and again after weights are moved, converted or loaded: until then the model runs composed.
    """
    choice = vim.scan_choice
    if choice is None:
        return
    module, reason = _module(choice, vim)
    _set_path(vim, choice, f"composed: {reason}" if reason else "fused")
    if module is not None:
        vim.use_encoder(module.encoder(vim))


def fuse_verified(vim: Vim) -> None:
    """`fuse`, if two fused layers of the model's widths agree with plain torch on its device.

    Fused layers that give wrong numbers or fail are logged, and the model runs composed.
    """
    fuse(vim)
    if vim.encoder is None or vim.scan_choice is None:
        return
    complaint = _complaint(vim, vim.scan_choice)
    if complaint is not None:
        log.error("fused layers of scan %s: %s; composing them", vim.scan_choice.name, complaint)
        _set_path(vim, vim.scan_choice, f"composed: the fused layers {complaint}")


def _set_path(vim: Vim, choice: ScanChoice, path: str) -> None:
    vim.use_scan(dataclasses.replace(choice, path=path))
    log.info("layers with scan %s: %s", choice.name, path)


def _complaint(vim: Vim, choice: ScanChoice) -> str | None:
    dtype, device = vim.patch_embed.proj.weight.dtype, vim.norm_f.weight.device
    try:
        error = largest_error(choice, vim.config, device, dtype)
    except Exception as failure:  # a kernel that cannot be built or started
        return f"do not run on {device}: {failure}"
    if error <= SLACK * selftest.tolerance(device, dtype):
        log.info("fused layers agree with plain torch: relative error %.1e in %s", error, dtype)
        return None
    return f"give wrong numbers on {device}: relative error {error:.1e} in {dtype}"


@torch.inference_mode()
def largest_error(choice: ScanChoice, config: VimConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Relative error of two fused layers against float64 on the CPU; infinite for values that are not finite."""
    vim = _example(config).cast(dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(IMAGES, TOKENS, config.embed_dim, generator=generator).to(dtype)
    encoder = importlib.import_module(ENCODERS[choice.name]).encoder(vim.to(device))
    found = encoder(tokens.to(device))
    return selftest.relative_error(found, vim.cpu().double().encode(tokens.double()))


def _example(config: VimConfig) -> Vim:
    """Return a seeded model of the same widths with two layers; each product is about as large as its input."""
    vim = Vim(config.replace(depth=LAYERS, num_classes=0), reference.scan).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in vim.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        if name.endswith(("norm.weight", "norm_f.weight")):
            parameter.data += 1
    return vim


def _module(choice: ScanChoice, vim: Vim) -> tuple[ModuleType | None, str]:
    """Return the module with the fused layers, or None and the reason."""
    if choice.name not in ENCODERS:
        return None, f"scan {choice.name} has no fused layers"
    module = importlib.import_module(ENCODERS[choice.name])
    reason: str | None = module.unsupported(vim)
    return (module, "") if reason is None else (None, reason)
