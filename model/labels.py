"""Class names: readable names by index, with WordNet ids where they are known.

`Labels.resolve` is the entry point: it never assigns ImageNet's names to a head of another size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import LabelsError

log = logging.getLogger("vim.model")

IMAGENET = "imagenet-1k"
NUMBERED = "none"
_FORMS = (
    'a JSON list of names, a JSON list of {"wnid", "name"} objects, a JSON object {"0": name, ...} '
    "or a text file with one name a line"
)


@dataclass(frozen=True, slots=True)
class Labels:
    """The names of a head's classes in index order; `source` says where they come from.

    Raises LabelsError for an empty name, or when the numbers of names and WordNet ids differ.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None
    source: str = "given"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _strings("names", self.names))
        if self.wnids is not None:
            object.__setattr__(self, "wnids", _strings("wnids", self.wnids))
            if len(self.wnids) != len(self.names):
                raise LabelsError(f"{len(self.names)} names come with {len(self.wnids)} wnids")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    @classmethod
    def imagenet(cls) -> Labels:
        """The ImageNet-1k classes in the order of the released models."""
        return _imagenet()

    @classmethod
    def numbered(cls, count: int) -> Labels:
        """The names class_0, class_1, ... for a head whose class names are unknown."""
        return cls(tuple(f"class_{index}" for index in range(count)), source=NUMBERED)

    @classmethod
    def read(cls, path: str | Path) -> Labels:
        """Read a JSON or text file of class names.

        JSON may be a list of names, a list of {"wnid", "name"} objects, or an object by index (Hugging Face's
        id2label); a text file has one name per line. Raises LabelsError for any other content.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise LabelsError(f"cannot read the labels {path}: {error}") from error
        try:
            names, wnids = _parse(text, is_json=_looks_json(path, text))
            return cls(names, wnids, path.name)
        except LabelsError as error:
            raise LabelsError(f"{path}: {error}") from error

    @classmethod
    def named(cls, given: str | Path) -> Labels:
        """Read the file of this name. Raises LabelsError, which says what else may be given."""
        if not Path(given).is_file():
            raise LabelsError(
                f'labels {str(given)!r} is neither "{IMAGENET}" nor "{NUMBERED}" nor a file: give {_FORMS}'
            )
        return cls.read(given)

    @classmethod
    def resolve(cls, given: str | Path | Sequence[str] | Labels | None, num_classes: int) -> Labels:
        """Return the labels of a head with `num_classes` outputs.

        `given` is "imagenet-1k", "none", a file, the names themselves, or None to choose by `num_classes`. Raises
        LabelsError if the number of labels differs from `num_classes`.
        """
        labels = _guess(num_classes) if given is None else _given(given, num_classes)
        if len(labels) != num_classes:
            raise LabelsError(
                f"{len(labels)} labels ({labels.source}) do not fit a head of {num_classes} classes: "
                f'give {num_classes} names, or "{NUMBERED}" to number the classes'
            )
        return labels

    def save(self, path: str | Path) -> None:
        """Write `labels.json` in a form that `read` accepts: a list of names, or of objects with wnid and name."""
        rows: list[Any] = list(self.names)
        if self.wnids is not None:
            rows = [{"wnid": wnid, "name": name} for wnid, name in zip(self.wnids, self.names, strict=True)]
        Path(path).write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


@cache
def _imagenet() -> Labels:
    lines = Path(__file__).with_name("imagenet1k.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return Labels(tuple(name for _, name in rows), tuple(wnid for wnid, _ in rows), IMAGENET)


def _guess(num_classes: int) -> Labels:
    if num_classes != len(_imagenet()):
        return Labels.numbered(num_classes)
    log.info(
        'assuming the labels "%s" because the head has %d classes; give a labels.json, a list of names, or "%s"',
        *(IMAGENET, num_classes, NUMBERED),
    )
    return _imagenet()


def _given(given: str | Path | Sequence[str] | Labels, num_classes: int) -> Labels:
    if isinstance(given, Labels):
        return given
    if given == IMAGENET:
        return _imagenet()
    if given == NUMBERED:
        return Labels.numbered(num_classes)
    if isinstance(given, (str, Path)):
        return Labels.named(given)
    return Labels(tuple(given))


_Parsed = tuple[tuple[str, ...], tuple[str, ...] | None]


def _parse(text: str, *, is_json: bool) -> _Parsed:
    if not is_json:
        return tuple(line.strip() for line in text.rstrip().splitlines()), None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LabelsError(f"no valid JSON ({error}): expected {_FORMS}") from error
    if isinstance(value, dict):
        return _by_index(value), None
    if not isinstance(value, list):
        raise LabelsError(f"expected {_FORMS}, found a JSON {type(value).__name__}")
    if value and all(isinstance(row, dict) for row in value):
        return _by_row(value)
    return tuple(value), None


def _looks_json(path: Path, text: str) -> bool:
    return path.suffix == ".json" or (path.suffix != ".txt" and text.lstrip()[:1] in ("[", "{"))


def _by_row(rows: list[dict[str, Any]]) -> _Parsed:
    for index, row in enumerate(rows):
        if set(row) != {"wnid", "name"}:
            raise LabelsError(f'entry {index} must have exactly "wnid" and "name", found {sorted(row)}')
    return tuple(row["name"] for row in rows), tuple(row["wnid"] for row in rows)


def _by_index(names: Mapping[str, Any]) -> tuple[str, ...]:
    for index in range(len(names)):
        if str(index) not in names:
            raise LabelsError(f'the {len(names)} keys must be "0" to "{len(names) - 1}", but "{index}" is missing')
    return tuple(names[str(index)] for index in range(len(names)))


def _strings(what: str, values: Sequence[Any]) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise LabelsError(f"{what}[{index}] must be a non-empty string, got {value!r}")
    return tuple(values)
