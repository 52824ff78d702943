"""Run `teach`: embed the pictures of a folder of classes, fit a head, report, write its file, send it to a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from model.heads.head import Head
from service import __version__
from service.cli.backend import Ask, CommandError, Embedded, Embedding, Model, Outcome
from service.cli.files import File, find
from service.cli.preflight import check_installed
from service.cli.run import Source, answer
from service.cli.terminal import Progress, escaped

LEAST_PICTURES = 2  # of a class: one to fit on and one to test with
_ASK = Ask("embed", normalize=False)  # what a head sees


@dataclass(frozen=True, slots=True)
class TeachOptions:
    """The arguments of the command."""

    folder: Path
    name: str
    out: Path
    as_json: bool


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a folder and the class of each."""

    files: list[File]
    labels: list[int]  # of each file
    names: list[str]  # of the classes


class Features:
    """A sink that keeps the features of every picture that has some."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.rows: dict[int, Embedding] = {}  # by number of the file
        self._count = 0

    def add(self, _: str, outcome: Outcome) -> None:
        """Take the outcome of the next file. Raises CommandError if the model has changed."""
        if isinstance(outcome, Embedded):
            if outcome.model != (self.model or outcome.model):
                raise CommandError(f"the model changed from {self.model} to {outcome.model}; run the command again")
            self.model = outcome.model
            self.rows[self._count] = outcome.values
        self._count += 1

    def finish(self) -> None:
        """Do nothing: all features are there."""


async def teach(source: Source, options: TeachOptions, write: Callable[[str], None], progress: Progress) -> int:
    """Teach a head; returns the exit status: 1 if a picture could not be read, or the server refused the head."""
    check_installed(("sklearn", "scipy"), "teach", "teach")
    from service.cli.teach import domain, fit, report

    pictures = read_folder(options.folder)
    progress.count(len(pictures.files))
    features = Features()
    status = await answer(source, pictures.files, _ASK, features, progress)
    numbers, labels = _usable(pictures, features)
    if features.model is None:
        raise CommandError("no picture could be embedded")
    rows = np.stack([features.rows[number] for number in numbers]).astype(np.float64)
    progress.busy("fitting ...")
    fitted = await asyncio.to_thread(fit.fit, rows, labels)
    like_taught = await asyncio.to_thread(domain.fit, rows, labels)
    found = report.judge(fitted, labels, pictures.names, [pictures.files[number].name for number in numbers])
    recipe = _recipe(features.model, fitted, found)
    head = Head(
        weight=fitted.weight.astype(np.float32),
        bias=fitted.bias.astype(np.float32),
        labels=tuple(pictures.names),
        model=features.model.fingerprint,
        recipe=recipe,
        domain=like_taught,
    )
    data = head.to_bytes()
    options.out.write_bytes(data)
    sent = await source.send_head(options.name, data)
    described = {"name": options.name, "out": str(options.out), "fingerprint": head.fingerprint, "sent_to": sent}
    if options.as_json:
        write(json.dumps({"head": described, "model": _identity(features.model), **found.to_json()}))
    else:
        for line in (*report.as_text(found), *_as_text(described, features.model, len(data))):
            write(line)
    return status


def read_folder(folder: Path) -> Pictures:
    """The classes of a folder: its subfolders, sorted, each with the pictures below it.

    Raises CommandError for fewer than two classes, or a class with too few pictures.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    classes = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if len(classes) < 2:
        raise CommandError(f"{folder} must have a folder for each class, at least two; it has {len(classes)}")
    files: list[File] = []
    labels: list[int] = []
    for number, one in enumerate(classes):
        found = find([str(one)])
        files += found
        labels += [number] * len(found)
    return Pictures(files, labels, [one.name for one in classes])


def _usable(pictures: Pictures, features: Features) -> tuple[list[int], Any]:
    """The numbers of the pictures that have features, and their labels."""
    numbers = sorted(features.rows)
    labels = np.array([pictures.labels[number] for number in numbers], np.intp)
    for number, name in enumerate(pictures.names):
        if (count := int((labels == number).sum())) < LEAST_PICTURES:
            raise CommandError(
                f"the class {name!r} has {count} readable pictures; it needs at least {LEAST_PICTURES}, better five"
            )
    return numbers, labels


def _recipe(model: Model, fitted: Any, report: Any) -> dict[str, Any]:
    """How the head was taught, for its file. It has no names of files, because they may be private."""
    return {
        "taught_by": f"vim-server {__version__}",
        "date": datetime.now(UTC).date().isoformat(),
        "model": model.name,
        "pictures": {one.label: one.pictures for one in report.classes},
        "penalty": fitted.penalty,
        "temperature": fitted.temperature,
        "folds": report.folds,
        "accuracy": report.accuracy,
        "interval": report.interval,
    }


def _identity(model: Model) -> dict[str, str]:
    return {"name": model.name, "fingerprint": model.fingerprint}


def _as_text(head: dict[str, Any], model: Model, size: int) -> list[str]:
    lines = [
        "",
        f"head   {escaped(head['out'])}: {size / 1000:.0f} kB, fingerprint {head['fingerprint']}",
        f"model  {escaped(str(model))}",
    ]
    return [*lines, f"sent   {head['sent_to']}"] if head["sent_to"] else lines
