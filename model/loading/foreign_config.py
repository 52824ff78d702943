"""`config.json` as other programs write it beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from model.config import Family, VimConfig, read_object
from model.reference_config import CONSTRUCTORS, IGNORED

_OWN = {field.name for field in dataclasses.fields(VimConfig)}
_ARGUMENTS = IGNORED.union(*CONSTRUCTORS.values())
_LIBRARIES = {"architecture": "timm", "architectures": "transformers", "model_type": "transformers"}
# What transformers adds to the arguments of a model.
_ADDED = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map", "_name_or_path"}


def read_config(path: Path, family: Family | None = None) -> tuple[VimConfig | None, str]:
    """Return the configuration in a file and an empty text; or None and the library that wrote it.

    The arguments of a family's constructor are translated: alone, as `PyTorchModelHubMixin` writes them, among those of
    transformers, or under `model_args`, as timm writes them. Arguments that several families have do not show
    which it is. Raises ConfigError for any other content.
    """
    values = read_object(path)
    library = next((name for key, name in _LIBRARIES.items() if key in values), "")
    arguments = values.get("model_args", values)
    if not isinstance(arguments, Mapping):
        arguments = values
    if library:
        arguments = {name: value for name, value in arguments.items() if name not in _ADDED}
    if not _is_constructors(arguments, library):
        return (None, library) if library else (VimConfig.from_dict(values), "")
    found = family or _family(arguments)
    if found is None:
        return None, "another program"
    return VimConfig.from_reference(family=found, **arguments), ""


def _is_constructors(arguments: Mapping[str, Any], library: str) -> bool:
    """Return whether these are arguments of a constructor; without a library's names some must be no fields of ours."""
    if library:
        return bool(arguments) and arguments.keys() <= _ARGUMENTS
    return bool(arguments.keys() & (_ARGUMENTS - _OWN)) and "family" not in arguments


def _family(arguments: Mapping[str, Any]) -> Family | None:
    """The first family whose constructor has an argument that no other has; None if there is no such argument."""
    for family in get_args(Family):
        others = (known for name, known in CONSTRUCTORS.items() if name != family)
        if arguments.keys() & CONSTRUCTORS[family].difference(*others):
            return cast(Family, family)
    return None
