"""Write answers to stdout and files: a table, JSON lines, or a .npy file and a file of names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service.cli.backend import Ask, Classified, CommandError, Embedded, Embedding, Failed, Model, Outcome
from service.cli.terminal import escaped

_MAX_WIDTH = 60  # characters of a file's name; longer names are not aligned
Print = Callable[[str], None]


class Sink(Protocol):
    """An object that gets the outcome of every file, in order."""

    def add(self, file: str, outcome: Outcome) -> None:
        """Take the outcome of the next file."""

    def finish(self) -> None:
        """End the output: there are no more files."""


class Table:
    """Classes for people: one line per class; the first one begins with the name of the file."""

    def __init__(self, names: list[str], write: Print) -> None:
        self._width = min(_MAX_WIDTH, max((len(escaped(name)) for name in names), default=0))
        self._write = write
        self._begun = False

    def add(self, file: str, outcome: Outcome) -> None:
        """Write the classes; errors are not part of the table."""
        if not isinstance(outcome, Classified):
            return
        if not self._begun:
            self._write(f"{'FILE':{self._width}}  {'SCORE':6}  CLASS")
            self._begun = True
        name = escaped(file)
        for one in outcome.predictions:
            self._write(f"{name:{self._width}}  {one['score']:.4f}  {escaped(one['label'])} ({one['index']})")
            name = ""

    def finish(self) -> None:
        """Do nothing: everything has been written."""


class Lines:
    """Classes for programs: one JSON object per line and file, also for errors."""

    def __init__(self, write: Print) -> None:
        self._write = write

    def add(self, file: str, outcome: Outcome) -> None:
        """Write the line at once, so that a reader need not wait for the end."""
        if isinstance(outcome, Failed):
            self._write(json.dumps({"file": file, "error": _error(outcome)}))
        elif isinstance(outcome, Classified):
            line = {"file": file, "model": _identity(outcome.model), "predictions": outcome.predictions}
            self._write(json.dumps(line))

    def finish(self) -> None:
        """Do nothing: everything has been written."""


class Embeddings:
    """Collects rows; writes OUT.npy (float32, N x D) and OUT.names.txt (one name per line) when all are there."""

    def __init__(self, out: Path, ask: Ask, write: Print, *, as_json: bool) -> None:
        self.out = out
        self.names_file = out.with_suffix(".names.txt")
        self._ask = ask
        self._write = write
        self._as_json = as_json
        self._model: Model | None = None
        self._names: list[str] = []
        self._rows: list[Embedding] = []
        self._failed: list[dict[str, Any]] = []

    def add(self, file: str, outcome: Outcome) -> None:
        """Raises CommandError when the model has changed: embeddings of two models cannot be compared."""
        if isinstance(outcome, Failed):
            self._failed.append({"file": file, "error": _error(outcome)})
        elif isinstance(outcome, Embedded):
            if outcome.model != (self._model or outcome.model):
                raise CommandError(f"the model changed from {self._model} to {outcome.model}")
            self._model = outcome.model
            self._names.append(file)
            self._rows.append(outcome.values)

    def finish(self) -> None:
        """Write both files and describe them, unless there is nothing to write."""
        if self._rows:
            _write_files(self.out, np.stack(self._rows), self.names_file, self._names)
        report = self._report()
        if self._as_json:
            self._write(json.dumps(report))
        elif self._rows:
            for line in self._as_text(report):
                self._write(line)

    def _report(self) -> dict[str, Any]:
        written = bool(self._rows)
        return {
            "out": str(self.out) if written else None,
            "names": str(self.names_file) if written else None,
            "shape": [len(self._rows), len(self._rows[0])] if written else [0, 0],
            "dtype": "float32",
            "pooling": self._ask.pooling,
            "normalized": self._ask.normalize,
            "crop": self._ask.crop,
            "model": _identity(self._model) if self._model else None,
            "failed": self._failed,
        }

    def _as_text(self, report: dict[str, Any]) -> list[str]:
        length = "unit length" if self._ask.normalize else "not normalized"
        count, dim = report["shape"]
        return [
            f"embeddings  {escaped(str(self.out))}: {count} x {dim} float32, {self._ask.pooling} pooling, {length}",
            f"names       {escaped(str(self.names_file))}: one a line, in the order of the rows",
            f"model       {escaped(str(self._model))}",
        ]


def as_tree(values: dict[Any, Any], indent: str = "") -> list[str]:
    """Nested values as aligned lines for people."""
    width = max((len(str(name)) for name, value in values.items() if not isinstance(value, dict)), default=0)
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *as_tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name!s:{width}}  {_plain(value)}")
    return lines


def npy_path(text: str) -> Path:
    """The path of the embeddings, with .npy added to a name without an ending. Raises CommandError for any other
    ending, and when it cannot be written.
    """
    if Path(text).suffix not in ("", ".npy"):
        raise CommandError(f"{text} does not end in .npy, the format that is written")
    path = Path(text if text.endswith(".npy") else f"{text}.npy")
    if not path.parent.is_dir():
        raise CommandError(f"there is no folder {path.parent}")
    if Path(text).is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandError(f"{path} cannot be written")
    return path


def _plain(value: Any) -> str:
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _error(failed: Failed) -> dict[str, str]:
    return {"code": failed.code, "message": failed.message}


def _identity(model: Model) -> dict[str, str]:
    return {"name": model.name, "fingerprint": model.fingerprint}


def _write_files(out: Path, rows: Embedding, names_file: Path, names: list[str]) -> None:
    """Write both under temporary names first, so that no incomplete file has a final name."""
    parts = [path.with_name(f"{path.name}.part") for path in (out, names_file)]
    with parts[0].open("wb") as stream:
        np.save(stream, rows)
    parts[1].write_bytes(b"".join(os.fsencode(_one_line(name)) + b"\n" for name in names))
    for part, path in zip(parts, (out, names_file), strict=True):
        part.replace(path)


def _one_line(name: str) -> str:
    return name.replace("\n", "\\n").replace("\r", "\\r")
