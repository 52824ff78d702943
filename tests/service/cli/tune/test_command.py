"""`tune`: short measurements of a real device process and decoder, and what the command prints and writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.backend import CommandError
from service.cli.main import main
from service.cli.tune.advice import Measured
from service.cli.tune.measure import measure, photograph
from tests.service.cli.tune.test_advice import CPU
from tests.service.conftest import settings_for
from tests.tiny import photo


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore logging after the test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_machine_is_measured_by_its_real_parts(tiny_model: Path) -> None:
    """Batches and threads are measured in powers of two up to the largest, and phases are reported."""
    said: list[str] = []
    files = [photo(1), photo(2, kind="PNG"), photograph(0)]
    found = await measure(settings_for(tiny_model, max_batch=6, threads=3), files, 0.05, said.append)

    assert {1, 2, 4, 6} == found.passes.keys()
    assert {1, 2, 3} == found.decode.keys()
    assert min(*found.passes.values(), *found.decode.values(), found.together, found.start_s) > 0
    assert ("tiny", "cpu") == (found.model, found.device)
    assert "3 given images" in found.source
    assert ["starting ...", "decoding ...", "forward passes ...", "both at once ..."] == said


@pytest.mark.anyio
async def test_an_image_that_is_none_ends_it(tiny_model: Path) -> None:
    """An image that cannot be decoded gives one message."""
    with pytest.raises(CommandError, match="cannot be decoded"):
        await measure(settings_for(tiny_model), [b"no image"], 0.05, lambda _: None)


def test_made_up_photographs_differ() -> None:
    """Made-up photographs differ, since identical ones would be computed once."""
    assert photograph(0) == photograph(0) != photograph(1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement by fixed figures."""

    async def known(*_: object) -> Measured:
        return CPU

    monkeypatch.setattr("service.cli.tune.command.measure", known)


@pytest.mark.usefixtures("measured")
def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is printed, and the environment file is written."""
    assert 0 == main(["tune", "--wait-ms", "500", "--write", str(tmp_path / "vim.env")])

    assert "VIM_MAX_BATCH=2" in capsys.readouterr().out
    assert "\nVIM_MAX_BATCH=2\n" in (tmp_path / "vim.env").read_text()


@pytest.mark.usefixtures("measured")
def test_a_busy_machine_is_warned_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning comes before and after the measurement, with the load; a quiet machine gets none."""
    monkeypatch.setattr("os.getloadavg", lambda: (3.25, 0.0, 0.0))
    assert 0 == main(["tune"])
    assert 2 == capsys.readouterr().err.count("warning: this machine is busy (load 3.2 on ")
    monkeypatch.setattr("os.getloadavg", lambda: (0.3, 9.0, 9.0))
    assert 0 == main(["tune"])
    assert "" == capsys.readouterr().err


@pytest.mark.usefixtures("measured")
def test_the_command_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json one object is printed, with what the fleet simulation needs."""
    assert 0 == main(["tune", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert {"name", "measured", "batch_seconds", "start_seconds", "queue_images", "settings"} <= found.keys()


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Wrong usage is refused before anything is measured."""
    assert 1 == main(["tune", str(tmp_path / "missing.jpg")])
    assert "cannot be read" in capsys.readouterr().err
