"""What `teach` says about a head."""

from __future__ import annotations

import numpy as np
import pytest

from service.cli.teach.fit import Fitted
from service.cli.teach.report import as_text, judge, wilson

HELD_OUT = np.array(
    [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.45, 0.25], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]
)
LABELS = np.array([0, 0, 1, 1, 2, 2])
NAMES = ["cat", "dog", "a\x1b[31mb"]
FILES = [f"file{number}.jpg" for number in range(6)]


def fitted() -> Fitted:
    """A classifier with these held-out probabilities."""
    return Fitted(np.zeros((3, 4)), np.zeros(3), 0.1, 1.0, 2, HELD_OUT)


def test_the_numbers() -> None:
    """Accuracy, classes, and the doubtful pictures, worst first: wrong ones, and right ones below one half."""
    report = judge(fitted(), LABELS, NAMES, FILES)

    assert pytest.approx(4 / 6) == report.accuracy
    assert [(2, 1, "dog"), (2, 2, None), (2, 1, "dog")] == [
        (one.pictures, one.right, one.taken_for) for one in report.classes
    ]
    assert ["file5.jpg", "file1.jpg", "file3.jpg"] == [one.file for one in report.unsure]
    assert ("cat", "dog", 0.2) == (report.unsure[1].label, report.unsure[1].answer, report.unsure[1].score)


def test_the_text_cannot_change_the_terminal() -> None:
    """Names of classes may hold any character; the text has none that moves the cursor."""
    text = "\n".join(as_text(judge(fitted(), LABELS, NAMES, FILES)))

    assert "accuracy  66.7% (95 % interval 30.0% to 90.3%), cross-validated on 6 pictures in 2 parts" in text
    assert "\x1b" not in text
    assert "file1.jpg: cat 0.20, more likely dog" in text


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (50, 100, 0.404, 0.596)]
)
def test_the_interval(right: int, count: int, low: float, high: float) -> None:
    """Wilson's interval has the values of the literature, also at the ends."""
    np.testing.assert_allclose(wilson(right, count), (low, high), atol=1e-3)
