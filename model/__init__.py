"""Vision Mamba, numerically equal to the reference implementation (hustvl/Vim). This package does not use HTTP.

`VimConfig`, `Preprocess` and `Labels` never import torch, because the HTTP process uses them. `Vim` and `load` import
it when they are first accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.config import VimConfig
from model.errors import ConfigError, LabelsError, ModelError, ScanError, WeightsError

if TYPE_CHECKING:
    from model.labels import Labels
    from model.loading.load import load
    from model.preprocessing.recipe import Preprocess
    from model.vim import Vim

__all__ = [
    "ConfigError",
    "Labels",
    "LabelsError",
    "ModelError",
    "Preprocess",
    "ScanError",
    "Vim",
    "VimConfig",
    "WeightsError",
    "load",
]

_LAZY = {
    "Labels": "model.labels",
    "Preprocess": "model.preprocessing.recipe",
    "Vim": "model.vim",
    "load": "model.loading.load",
}


def __getattr__(name: str) -> Any:
    """Import the class or function called `name` on first access."""
    if name not in _LAZY:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
