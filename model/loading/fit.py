"""Compare the tensors of a file with an architecture: missing and unexpected tensors, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import VimConfig
from model.errors import WeightsError
from model.loading.infer_config import class_tokens, patches, visible_fields
from model.loading.names import verdict

_FEW = 4
_REMARKS = {
    "bimamba": "blocks without *_b keys are plain Mamba's, as in stock mamba_ssm",
    "num_classes": "the head was trained for other classes, or is missing; 0 means no head",
    "pos_embed": "one of them has no position embedding",
}


def check_fit(path: Path, config: VimConfig, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise WeightsError unless both mappings have the same names and shapes."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} (expected {_shape(tensor)}, found {_shape(found[name])})"
        for name, tensor in expected.items()
        if name in found and tensor.shape != found[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"{len(names)} {what}: {_few(names)}" for what, names in groups.items() if names]
    if lines:
        what = verdict(found)
        lines.append(f"likely cause: {f'this is {what}' if what else _cause(config, found)}")
        raise WeightsError("\n  ".join([f"{path} does not fit the configuration:", *lines]))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _cause(config: VimConfig, found: Mapping[str, Tensor]) -> str:
    """Describe where the file contradicts the configuration."""
    try:
        differences = [*_field_differences(config, visible_fields(found)), *_position_differences(config, found)]
    except WeightsError as error:
        return str(error)
    return "; ".join(differences) or "an incomplete or edited file"


def _field_differences(config: VimConfig, fields: dict[str, Any]) -> Iterator[str]:
    # Tokens are compared below; different values of expand can give the same width.
    skipped = {"class_token", "pool", "rope_pretrained_grid"}
    if int(fields["expand"] * fields["embed_dim"]) == config.d_inner:
        skipped.add("expand")
    for name, value in fields.items():
        expected = getattr(config, name)
        if name not in skipped and value != expected:
            remark = f" ({_REMARKS[name]})" if name in _REMARKS else ""
            yield f"the file shows {name} {value}, the configuration says {expected}{remark}"


def _position_differences(config: VimConfig, found: Mapping[str, Tensor]) -> Iterator[str]:
    tokens, count = class_tokens(found), patches(found)
    if tokens != config.num_class_tokens:
        yield f"the file has {tokens} class tokens, the configuration {config.num_class_tokens}"
    if count is not None and count != config.num_patches:
        height, width = config.image_size
        yield (
            f"the file has {count} patch positions, the configuration {config.num_patches} "
            f"({height}x{width} px at stride {config.stride}): another image size or stride"
        )
