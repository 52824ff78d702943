"""The report shows the runs: targets reached and missed, losses, and nothing that was not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.serve import plots, report, summary, targets
from bench.serve.peers import ONE, OURS, PILLOW
from bench.serve.record import Record
from bench.serve.runs import capacity
from tests.bench.serve.some_runs import RUN, runs

DATA = {
    "about": {"machine": "2 CPUs", "device": "cpu", "quick": False, "date": "2026-11-25"},
    "versions": {OURS: [], "mosec": ["mosec 0.9.8"]},
    "disagree": [],
}


def test_a_target_is_measured_against_the_best() -> None:
    """A target compares with the best peer, or with the peer that it names."""
    found = {str(v.target): v for v in targets.verdicts(summary.by_key(runs()))}
    best = found["a, c=64: throughput at least 1.2 x the best peer's"]
    named = found["a, c=64: throughput at least 2 x LitServe's"]

    assert ("mosec", 120 / 110, False) == (best.peer, best.ratio, best.met)
    assert ("LitServe", 2.4, True) == (named.peer, named.ratio, named.met)
    assert 2 == len(found)


def test_the_other_setting_of_this_service_is_no_peer() -> None:
    """Another setting of this service is shown in the report, but not compared with."""
    target = targets.Target("a", "c=64", "images_per_s", 1.2, least=True)

    assert targets.verdict(target, summary.by_key([RUN, replace(RUN, peer=PILLOW)])) is None


def test_its_own_settings_do_not_set_the_rate_of_the_open_loops() -> None:
    """The rate of the open loops is that of the best peer, or else this service's own."""
    two = replace(RUN, peer=ONE, images_per_s=500.0)

    assert 110.0 == capacity([*runs(), two], "a")
    assert 500.0 == capacity([RUN, two], "a")


def test_a_latency_is_to_be_lower() -> None:
    """A target of latency compares with the peer that has the lowest one."""
    quick, slow = (
        replace(RUN, scenario="open loop, 70 %", peer=p, p99_ms=t) for p, t in (("mosec", 8.0), ("BentoML", 80.0))
    )
    target = targets.Target("a", "open loop, 70 %", "p99_ms", 1.0, least=False)
    found = targets.verdict(target, summary.by_key([replace(RUN, scenario="open loop, 70 %"), quick, slow]))

    assert found is not None
    assert ("mosec", 1.25, False) == (found.peer, found.ratio, found.met)


def test_the_tables_hold_what_was_measured() -> None:
    """The tables have a column per server that ran, losses in percent, and a row with the counts of a kill."""
    lines = report.text(DATA, runs()).splitlines()

    assert "| Load | this service | LitServe | mosec |" in lines
    assert "| c=64 | 120 · 10 · 2 | 50 · 10 · 2 | 110 · 10 · 2 |" in lines
    overload = next(line for line in lines if line.startswith("| overload, 300 % (330/s)"))
    assert "120 (60) · 300 · 2, 20 % refused" in overload
    assert "| mosec | 100 | 93 | 0 | 7 | 10 |" in lines
    assert "mosec 0.9.8" in lines[0]


def test_a_server_that_answers_otherwise_or_does_not_run_is_named() -> None:
    """A server with wrong answers, or one that does not run, is named in the report."""
    assert "**a: mosec gave another answer.**" in report.text(DATA | {"disagree": ["a: mosec"]}, runs())
    assert "**a: mosec did not run.**" in report.text(DATA | {"missing": {"a: mosec": "no answer"}}, runs())


def test_only_what_lies_between_the_marks_is_written() -> None:
    """Only the text between the marks is replaced."""
    document = "before\n<!-- serve -->\nold\n<!-- /serve -->\nafter\n"

    assert "before\n<!-- serve -->\nnew\n<!-- /serve -->\nafter\n" == report.replaced(document, "new")
    assert "old" == report.current(document)
    with pytest.raises(SystemExit):
        report.replaced("nothing", "new")


def test_the_plots_are_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    """Plots are drawn for the scenarios that ran, and are equal for equal runs."""
    pytest.importorskip("matplotlib")
    found = [replace(run, scenario=name) for run in runs() for name in ("c=1", "c=8", run.scenario)]
    groups = summary.by_key(found)
    drawn = plots.draw(groups, tmp_path)

    assert ["serve-throughput.svg", "serve-latency.svg"] == [path.name for path in drawn]
    first = [path.read_text() for path in drawn]
    assert OURS in first[0]
    assert first == [path.read_text() for path in plots.draw(groups, tmp_path)]
    assert [] == plots.draw({}, tmp_path)


def test_results_are_kept_and_not_mixed(tmp_path: Path) -> None:
    """Results are kept and not measured again, and those of another device are refused."""
    record = Record(tmp_path / "serve.json", "cpu")
    record.add(RUN)
    record.note("versions", "mosec", ["mosec 0.9.8"])
    again = Record(tmp_path / "serve.json", "cpu")

    assert [RUN] == again.runs
    assert again.has("a", "c=64", OURS, 1)
    assert not again.has("a", "c=64", OURS, 2)
    with pytest.raises(SystemExit, match="another machine"):
        Record(tmp_path / "serve.json", "cuda")


def test_the_document_is_what_the_results_say() -> None:
    """The tables of bench/results/serve.md are generated from bench/results/serve.json, never edited."""
    path = report.DOCUMENT.with_suffix(".json")
    if not path.is_file():
        pytest.skip("there are no results")
    record = Record.__new__(Record)
    record.load(path)
    document = report.current(report.DOCUMENT.read_text(encoding="utf-8"))
    tables = [line for line in document.splitlines() if not line.startswith("![")]

    assert [line for line in report.text(record.data, record.runs).splitlines() if line] == [t for t in tables if t]
