"""Vision Mamba, equal to the reference implementation (hustvl/Vim); ignorant of HTTP.

`VimConfig`, `Preprocess` and labels never import torch. `Vim` and `load` import it when first touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.config import VimConfig
from model.errors import ConfigError, LabelsError, ModelError, ScanError, WeightsError
from model.labels import Labels
from model.preprocess import Preprocess

if TYPE_CHECKING:
    from model.vim import Vim
    from model.weights import load

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

_LAZY = {"Vim": "model.vim", "load": "model.weights"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
