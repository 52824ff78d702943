"""The progress of a command on a terminal."""

from __future__ import annotations

import sys

import pytest

from service.cli.terminal import Progress


def test_progress_is_drawn_on_a_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """When stderr is not a terminal, only notes are written to it."""
    progress = Progress(10, sys.stderr)
    progress.busy("loading")
    progress.step(failed=False)
    progress.note("a.jpg: broken")

    assert "a.jpg: broken\n" == capsys.readouterr().err


def test_progress_counts_and_estimates(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar shows images done and failed; a note is on a separate line."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(4, sys.stderr)
    progress.busy("loading")
    progress.begin()
    progress.step(failed=True)
    progress.note("a.jpg: broken")
    progress.step(failed=False)
    progress.clear()
    drawn = capsys.readouterr().err

    assert "loading" in drawn
    assert "| 1/4 [" in drawn
    assert "failed=1" in drawn
    assert "a.jpg: broken\n" in drawn
