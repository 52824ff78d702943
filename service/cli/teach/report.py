"""What `teach` prints about a head: accuracy with its interval, each class, and the pictures to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.cli.teach.fit import Fitted, Labels
from service.cli.terminal import escaped

MOST_UNSURE = 10  # pictures that are listed
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class, judged by cross-validation."""

    label: str
    pictures: int
    right: int
    taken_for: str | None  # the class that most of the others were taken for


@dataclass(frozen=True, slots=True)
class Unsure:
    """A picture that may be in the wrong folder: its label has a low score."""

    file: str
    label: str
    score: float  # the probability of its label
    answer: str


@dataclass(frozen=True, slots=True)
class Report:
    """A head as cross-validation sees it: each picture is classified by a head that was fitted without it."""

    accuracy: float
    interval: tuple[float, float]  # 95 %
    pictures: int
    folds: int
    classes: tuple[ClassReport, ...]
    unsure: tuple[Unsure, ...]

    def to_json(self) -> dict[str, Any]:
        """The report for programs, and for the recipe in the head's file."""
        return asdict(self)


def judge(fitted: Fitted, labels: Labels, names: Sequence[str], files: Sequence[str]) -> Report:
    """Judge a classifier by its held-out probabilities."""
    answers = fitted.held_out.argmax(axis=1)
    own = fitted.held_out[np.arange(len(labels)), labels]
    doubted = [int(i) for i in np.argsort(own) if answers[i] != labels[i] or own[i] < 0.5]
    right = int((answers == labels).sum())
    return Report(
        accuracy=right / len(labels),
        interval=wilson(right, len(labels)),
        pictures=len(labels),
        folds=fitted.folds,
        classes=tuple(_class(number, answers[labels == number], names) for number in range(len(names))),
        unsure=tuple(
            Unsure(files[index], names[int(labels[index])], float(own[index]), names[int(answers[index])])
            for index in doubted[:MOST_UNSURE]
        ),
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which is also valid for few pictures and shares near 1."""
    share, square = right / count, _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _class(number: int, answers: Labels, names: Sequence[str]) -> ClassReport:
    wrong = answers[answers != number]
    taken_for = names[int(np.bincount(wrong).argmax())] if len(wrong) else None
    return ClassReport(names[number], len(answers), len(answers) - len(wrong), taken_for)


def as_text(report: Report) -> Iterator[str]:
    """The report as lines for people."""
    low, high = report.interval
    yield (
        f"accuracy  {report.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}), cross-validated on "
        f"{report.pictures} pictures in {report.folds} parts"
    )
    width = max(len("CLASS"), *(len(escaped(one.label)) for one in report.classes))
    yield f"\n{'CLASS':{width}}  PICTURES  RIGHT  OFTEN TAKEN FOR"
    for one in report.classes:
        line = f"{escaped(one.label):{width}}  {one.pictures:8}  {one.right / one.pictures:5.0%}"
        yield line if one.taken_for is None else f"{line}  {escaped(one.taken_for)}"
    if report.unsure:
        yield "\npictures that may be in the wrong folder:"
        for picture in report.unsure:
            what = f"{escaped(picture.label)} {picture.score:.2f}"
            yield f"  {escaped(picture.file)}: {what}, more likely {escaped(picture.answer)}"
