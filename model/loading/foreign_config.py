"""`config.json` as other programs write it beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import VimConfig, read_object
from model.reference_config import DEFAULTS, IGNORED

_OWN = {field.name for field in dataclasses.fields(VimConfig)}
_REFERENCE = DEFAULTS.keys() | IGNORED
_LIBRARIES = {"architecture": "timm", "architectures": "transformers", "model_type": "transformers"}
# What transformers adds to the arguments of a model.
_ADDED = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map", "_name_or_path"}


def read_config(path: Path) -> tuple[VimConfig | None, str]:
    """Return the configuration in a file and an empty text; or None and the library whose file it is.

    The arguments of the reference's constructor are translated: alone, as `PyTorchModelHubMixin` writes them, among
    those of transformers, or under `model_args`, as timm writes them. Raises ConfigError for any other content.
    """
    values = read_object(path)
    library = next((name for key, name in _LIBRARIES.items() if key in values), "")
    arguments = values.get("model_args", values)
    if not isinstance(arguments, Mapping):
        arguments = values
    if library:
        arguments = {name: value for name, value in arguments.items() if name not in _ADDED}
    if _is_constructors(arguments, library):
        return VimConfig.from_reference(**arguments), ""
    return (None, library) if library else (VimConfig.from_dict(values), "")


def _is_constructors(arguments: Mapping[str, Any], library: str) -> bool:
    """Whether these are arguments of the reference's constructor, some of which have names of their own."""
    if library:
        return bool(arguments) and arguments.keys() <= _REFERENCE
    return bool(arguments.keys() & (_REFERENCE - _OWN))
