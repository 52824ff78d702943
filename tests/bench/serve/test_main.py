"""The benchmark as it is documented: where each kind of run reads and writes results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.serve import __main__ as command
from bench.serve import report, runs
from bench.serve.record import Record
from tests.bench.serve.some_runs import RUN

FOREIGN = {"about": {"machine": "another one", "device": "cpu", "quick": False}, "disagree": [], "runs": []}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results below a temporary folder, the committed ones of another machine; a run is made, without servers."""
    (tmp_path / "serve.json").write_text(
        json.dumps(FOREIGN | {name: {} for name in ("versions", "memory_mb", "missing")})
    )
    monkeypatch.setattr(command, "RESULTS", tmp_path / "serve.json")
    monkeypatch.setattr(command, "TRIALS", tmp_path / "build")
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run_all(plan: runs.Plan, regimes: Any, record: Record) -> None:
        assert not record.has(RUN.regime, RUN.scenario, RUN.peer, RUN.round)
        record.add(RUN)

    monkeypatch.setattr(runs, "run_all", run_all)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--quick", "--peers", "mosec"], ["--dry-run"]])
def test_trials_do_not_touch_the_results(arguments: list[str], folder: Path) -> None:
    """A quick and a dry run write below `build`, whatever machine the committed results are of."""
    before = (folder / "serve.json").read_bytes()

    assert 0 == command.main(arguments)

    assert before == (folder / "serve.json").read_bytes()
    assert 1 == len(list((folder / "build").glob("serve-*.json")))


def test_a_dry_run_is_made_again_each_time(folder: Path) -> None:
    """A dry run ignores the results of earlier dry runs, because it tests the current programs."""
    assert [0, 0] == [command.main(["--dry-run"]) for _ in range(2)]


def test_a_full_run_on_another_machine_names_the_option(folder: Path) -> None:
    """Results of two machines are not mixed; the message names the option to use."""
    with pytest.raises(SystemExit, match=r"holds results of another machine.* name another file with --out"):
        command.main([])

    assert 0 == command.main(["--out", str(folder / "mine.json")])
    assert Record(folder / "mine.json", "cpu").has(RUN.regime, RUN.scenario, RUN.peer, RUN.round)


def test_the_report_is_written_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--report` reads the results of another machine and changes none."""
    written: list[Any] = []
    monkeypatch.setattr(report, "update", lambda data, _: written.append(data["about"]["machine"]))

    assert 0 == command.main(["--report"])
    assert ["another one"] == written
