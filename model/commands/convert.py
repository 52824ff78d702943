"""Convert a source of any kind to a model directory: model.safetensors, config.json, labels.json, preprocess.json,
in_domain.json.

The directory computes the same as the source: fingerprints are compared before success is reported.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from model.errors import ModelError, WeightsError
from model.heads import domain_file
from model.labels import NUMBERED
from model.loading.fingerprint import BUFFERS
from model.loading.load import Contents, own_recipe, read, reference_fingerprint
from model.loading.source import PARTS, WEIGHTS

Write = Callable[[Path], object]


def convert(contents: Contents, directory: Path, *, force: bool = False) -> list[Path]:
    """Write the parts and return their paths.

    Numbered classes get no labels.json, and the family's own preprocessing no preprocess.json; old files of these names
    are removed. Raises WeightsError if a file exists and `force` is false, or if the directory cannot be written.
    """
    parts = _parts(contents)
    check_free(directory, force=force)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, *(f"{part}.json" for part in PARTS)):
            _replace(directory / name, parts.get(name))
    except OSError as error:
        raise WeightsError(f"cannot write {directory}: {error.strerror or error}") from error
    written = read(directory, preprocess=contents.preprocess.mode).fingerprint
    if written != contents.fingerprint:
        raise ModelError(
            f"{directory} has fingerprint {written} instead of {contents.fingerprint}: the disk changed the files"
        )
    return [directory / name for name in parts]


def _parts(contents: Contents) -> dict[str, Write]:
    """Return a function for each file that writes it; RoPE tables are left out, the configuration determines them."""
    tensors = {name: tensor for name, tensor in contents.checkpoint.tensors.items() if name not in BUFFERS}
    parts: dict[str, Write] = {
        WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        "config.json": contents.config.save,
    }
    if contents.labels.source != NUMBERED:
        parts["labels.json"] = contents.labels.save
    recipe = contents.preprocess
    if recipe != dataclasses.replace(own_recipe(contents.config), mode=recipe.mode):
        text = json.dumps(recipe.to_dict(), indent=2) + "\n"
        parts["preprocess.json"] = lambda path: path.write_text(text, encoding="utf-8")
    if (domain := contents.domain) is not None:
        own = reference_fingerprint(contents.config, contents.preprocess, contents.checkpoint)
        parts["in_domain.json"] = lambda path: domain_file.save(path, own, domain)
    return parts


def check_free(directory: Path, *, force: bool) -> None:
    """Raise WeightsError if `convert` would replace something; callers check it before they read a large source."""
    if directory.exists() and not directory.is_dir():
        raise WeightsError(f"{directory} is a file; name a directory to write to")
    taken = [name for name in (WEIGHTS, *(f"{part}.json" for part in PARTS)) if (directory / name).exists()]
    if taken and not force:
        raise WeightsError(f"{directory} already holds {', '.join(taken)}: nothing was written; --force replaces them")


def _replace(path: Path, write: Write | None) -> None:
    """Write to a temporary name and rename, so that no partial file has the final name; None removes the file."""
    if write is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
