"""The paths of a model's parts: weights, configuration, labels, preprocessing; downloaded if necessary.

This module opens none of them: `model.loading.checkpoint` reads the weights, `model.loading.load` the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from model.errors import WeightsError
from model.labels import IMAGENET
from model.loading import shards
from model.loading.hub import Hub
from model.loading.released import GRAMMAR, RELEASED, Reference, Released, parse, released
from model.shipped import shipped

SHIPPED = {"demo": shipped("demo")}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WEIGHTS = "model.safetensors"
PARTS = ("config", "labels", "preprocess", "in_domain")


@dataclass(frozen=True, slots=True)
class Source:
    """Paths of a model's parts; None for a part that the source does not have."""

    weights: Path
    config: Path | None = None
    labels: Path | str | None = None  # a released model has ImageNet's, by name
    preprocess: Path | None = None
    in_domain: Path | None = None
    released: Released | None = None


def resolve(source: str | Path, cache_dir: str | Path | None = None, *, offline: bool = False) -> Source:
    """Find the parts of `source`: a directory, one file of weights, a name, or `owner/name[@revision][:file]`.

    Names are those of the released models (`vim-tiny`, ...) and of the shipped one (`demo`). An existing path takes
    precedence. A file is loaded alone: a config.json in the same folder is ignored, because folders of downloads mix
    models; give the directory to use both. Raises WeightsError if there is nothing to load.
    """
    found = check(source)
    return found if isinstance(found, Source) else _fetched(found, Hub(cache_dir, offline))


def check(source: str | Path) -> Source | Reference:
    """Return the parts that are here, or what to download. Raises WeightsError as `resolve`, without the network."""
    path = Path(source).expanduser()
    if path.exists():
        return _local(path)
    if str(source) in SHIPPED:
        return _local(SHIPPED[str(source)])
    reference = parse(str(source))
    # owner/name.pth is a misspelt path, not a repository.
    if reference is None or (reference.file is None and path.suffix in (*SUFFIXES, ".json")):
        raise WeightsError(_unknown(path))
    return reference


def _unknown(path: Path) -> str:
    near = difflib.get_close_matches(str(path), [*RELEASED, *SHIPPED], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"{path} does not exist{hint}; give a directory, a file ({', '.join(SUFFIXES)}), "
        f"a name ({', '.join([*SHIPPED, *RELEASED])}), or a repository on the hub: {GRAMMAR}"
    )


def _local(path: Path) -> Source:
    if path.is_dir():
        files = {file.name for file in path.iterdir() if file.is_file()}
        beside = {part: path / f"{part}.json" for part in PARTS if f"{part}.json" in files}
        return _joined(path / _choose(files, str(path)), beside)
    if not path.exists():
        raise WeightsError(f"the shipped model {path} is not there")
    if path.suffix == ".json" and not shards.is_index(path):
        raise WeightsError(f"{path} is JSON, not weights; name its directory {path.parent} to load the model there")
    return Source(path)


def _fetched(reference: Reference, hub: Hub) -> Source:
    """Download one file if it is named or the repository has no model.safetensors, else all parts."""
    if reference.file is not None:
        return _fetched_file(reference, reference.file, hub)
    files = hub.files(reference)
    weights = _choose(files, f"{reference.repo} (revision {reference.revision})")
    if weights != WEIGHTS and weights not in shards.INDEXES:
        return _fetched_file(reference, weights, hub)
    beside = {part: hub.download(reference, f"{part}.json") for part in PARTS if f"{part}.json" in files}
    path = hub.download(reference, weights)
    if weights in shards.INDEXES:
        for shard in shards.read_index(path):
            hub.download(reference, shard)
    return _joined(path, beside)


def _fetched_file(reference: Reference, file: str, hub: Hub) -> Source:
    if PurePosixPath(file).suffix not in SUFFIXES:
        raise WeightsError(f"{reference.repo}:{file} is not a file of weights ({', '.join(SUFFIXES)})")
    known = released(reference.repo, file)
    return Source(hub.download(reference, file), labels=IMAGENET if known else None, released=known)


def _joined(weights: Path, beside: dict[str, Path]) -> Source:
    config, labels, preprocess, in_domain = (beside.get(part) for part in PARTS)
    return Source(weights, config, labels, preprocess, in_domain)


def _choose(files: Iterable[str], where: str) -> str:
    """Return the only file of weights at the top of a directory or repository, or the index of its shards."""
    files = set(files)
    weights = sorted(file for file in files if "/" not in file and PurePosixPath(file).suffix in SUFFIXES)
    if WEIGHTS in weights:
        return WEIGHTS
    if index := next((index for index in shards.INDEXES if index in files), None):
        return index
    # The same model is often stored in both formats; safetensors is the safer one.
    candidates = [file for file in weights if file.endswith(".safetensors")] or weights
    if not candidates:
        raise WeightsError(f"{where} holds no weights: no {WEIGHTS} and no file {', '.join(SUFFIXES)}")
    if len(candidates) > 1:
        raise WeightsError(f"{where} holds several files of weights ({', '.join(candidates)}): name the one you mean")
    return candidates[0]
