"""A folder of labelled images: one folder per class, named by the class or its WordNet id.

Only names are read; `model.commands.evaluate` opens the images.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import LabelsError
from model.labels import Labels

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_FEW = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file and the index of its class."""

    path: Path
    label: int


def find(folder: Path, labels: Labels) -> list[Sample]:
    """Return all images below the class folders, sorted by class folder and name.

    Case, spaces, underscores and hyphens in folder names are ignored. Raises LabelsError if the folder does not exist,
    or if a subfolder is not a class; the message suggests the nearest classes.
    """
    classes = _class_folders(folder)
    index = _index(labels)
    indices = {path: _lookup(path.name, index) for path in classes}
    unknown = [path.name for path, found in indices.items() if found is None]
    if unknown:
        raise LabelsError(_unknown(folder, unknown, index, labels))
    samples = [Sample(file, label) for path, label in indices.items() if label is not None for file in _images(path)]
    if not samples:
        raise LabelsError(f"{folder} has {len(classes)} class folders but no image ({', '.join(sorted(SUFFIXES))})")
    return samples


def evenly_spaced(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Return at most `limit` samples, evenly spaced, so that every class keeps its share."""
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // limit] for i in range(limit)]


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise LabelsError(f"{folder} is not a folder: give one that holds a folder of images for each class")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise LabelsError(f"{folder} holds no folders: put the images of each class into a folder of its name or wnid")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _index(labels: Labels) -> dict[str, set[int]]:
    """Return key -> classes; two classes may have the same key."""
    index = defaultdict[str, set[int]](set)
    for number, name in enumerate(labels.names):
        index[_key(name)].add(number)
    for number, wnid in enumerate(labels.wnids or ()):
        index[_key(wnid)].add(number)
    return dict(index)


def _lookup(name: str, index: dict[str, set[int]]) -> int | None:
    found = index.get(_key(name), set())
    return next(iter(found)) if len(found) == 1 else None


def _unknown(folder: Path, unknown: list[str], index: dict[str, set[int]], labels: Labels) -> str:
    lines = [f"  {name}: {_nearest(name, index)}" for name in unknown[:_FEW]]
    more = f"\n  and {len(unknown) - _FEW} more" if len(unknown) > _FEW else ""
    return (
        f"{len(unknown)} folders in {folder} are not among the {len(labels)} labels ({labels.source}):\n"
        + "\n".join(lines)
        + more
        + "\n  rename them, or give the model's own names with --labels"
    )


def _nearest(name: str, index: dict[str, set[int]]) -> str:
    if _key(name) in index:
        return f"{len(index[_key(name)])} classes have this name; use their wnids"
    near = difflib.get_close_matches(_key(name), index, n=3)
    return f"did you mean {', '.join(map(repr, near))}?" if near else "no similar class"
