"""All layers of a Vim as one function, where the scan in use has one; says which way runs and why.

A module of `_MODULES` defines

    unsupported(vim)  None, or in a few words what about the configuration, the dtype or the device it does not do
    encoder(vim)      the function for `vim.encoder`, made once, from weights in their final dtype on their final device

and is otherwise free: it sees the tokens before the first layer and returns those after the final norm.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from types import ModuleType

from model.scan import ScanChoice
from model.vim import Vim

log = logging.getLogger("vim.model")

# Name of the scan -> module.
_MODULES = {"numba": "model.cpu_layers"}


def fuse(vim: Vim) -> None:
    """Let all layers run as one function, if the scan in use has one for this model; `scan_choice.path` says it.

    Last of all: what moves, converts or loads weights afterwards must call it again.
    """
    choice = vim.scan_choice
    if choice is None:
        return
    module, reason = _module(choice, vim)
    vim.use_scan(dataclasses.replace(choice, path=f"composed: {reason}" if reason else "fused"))
    if module is not None:
        vim.encoder = module.encoder(vim)
    log.info("layers with scan %s: %s", choice.name, reason or "fused")


def _module(choice: ScanChoice, vim: Vim) -> tuple[ModuleType | None, str]:
    """The module that runs the layers as one, or why there is none."""
    if choice.name not in _MODULES:
        return None, f"scan {choice.name} has no fused layers"
    module = importlib.import_module(_MODULES[choice.name])
    reason: str | None = module.unsupported(vim)
    return (module, "") if reason is None else (None, reason)
