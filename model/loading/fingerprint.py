"""The fingerprint: twelve hexadecimal digits that identify what a model computes.

It is computed from these parts, each preceded by its name and length, so that parts cannot be confused:

    config       fields of VimConfig, as JSON with sorted keys, without `family`, and without fields that were added
                 after the first version and have their default; 2 and 2.0 are the same number
    preprocess   the recipe with its mode (reference, friendly), likewise
    <tensor>     for every learned tensor by name, sorted: shape, then float32 bytes, little-endian

Not included: the RoPE tables (the configuration determines them), labels (they name scores and do not change them),
file names and formats, device, dtype and scan (they change results by rounding only). Weights are read before any cast.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from model.config import VimConfig
from model.preprocessing.recipe import Preprocess

BUFFERS = frozenset({"rope.freqs_cos", "rope.freqs_sin"})
DIGITS = 12
_ADDED = {"spread_tokens": 0, "neck_reduction": 1, "scores": "auto"}  # field -> default: old fingerprints stay


def fingerprint(config: VimConfig, preprocess: Preprocess, tensors: Mapping[str, Tensor]) -> str:
    """Return twelve hexadecimal digits of the sha256 of the parts above."""
    digest = hashlib.sha256()
    fields = {name: value for name, value in config.to_dict().items() if name != "family" and _ADDED.get(name) != value}
    _feed(digest, "config", _canonical(fields))
    _feed(digest, "preprocess", _canonical(preprocess.to_dict()))
    for name in sorted(tensors.keys() - BUFFERS):
        values = np.ascontiguousarray(tensors[name].detach().float().cpu().numpy(), dtype="<f4")
        _feed(digest, f"{name} {list(values.shape)}", values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:DIGITS]


def _feed(digest: hashlib._Hash, name: str, content: bytes | memoryview) -> None:
    digest.update(f"{name}|{len(content)}|".encode())
    digest.update(content)


def _canonical(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
