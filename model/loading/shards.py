"""The index of a model in several files (shards), as `save_pretrained` of Hugging Face's libraries writes it.

{"metadata": {...}, "weight_map": {"name of a tensor": "model-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from model.errors import WeightsError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.\w+")


def is_index(path: Path) -> bool:
    """Return whether a path is that of an index."""
    return path.name.endswith(".index.json")


def of_several(path: Path) -> bool:
    """Return whether a file's name is that of one of several shards."""
    found = _SHARD.fullmatch(path.name)
    return found is not None and int(found[1]) > 1


def read_index(path: Path) -> dict[str, list[str]]:
    """Return shard -> names of its tensors. Raises WeightsError for a damaged index, or one with files elsewhere."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(file), str(name)) for name, file in places.items()]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is not an index of shards (weight_map): {error}") from error
    shards: dict[str, list[str]] = {}
    for file, name in pairs:
        if Path(file).name != file or file in ("", ".", ".."):
            raise WeightsError(f"{path} names the file {file!r}, which is not beside it")
        shards.setdefault(file, []).append(name)
    return shards
