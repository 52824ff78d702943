"""The file of results -> the tables of bench/README.md and the plots; it replaces the text between two marks there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.serve import plots, summary, targets
from bench.serve.peers import PEERS
from bench.serve.scenarios import DRY, REGIMES, Regime, Scenario
from bench.serve.summary import Key, Run

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- serve -->\n", "<!-- /serve -->")
Groups = Mapping[Key, Sequence[Run]]


def update(data: Mapping[str, Any], runs: Sequence[Run], readme: Path = README) -> None:
    """Write the tables and the plots again."""
    drawn = plots.draw(summary.by_key(runs), readme.parent / "results")
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), text(data, runs, drawn)), encoding="utf-8")


def replaced(document: str, generated: str) -> str:
    """The document with this text between its marks."""
    begin, end = MARKS
    before, found, rest = document.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"no {begin.strip()} ... {end} in the document")
    return f"{before}{begin}{generated}\n{end}{rest.partition(end)[2]}"


def text(data: Mapping[str, Any], runs: Sequence[Run], drawn: Iterable[Path] = ()) -> str:
    """The whole report."""
    groups = summary.by_key(runs)
    regimes = [regime for regime in (*REGIMES.values(), DRY) if any(key[0] == regime.name for key in groups)]
    parts = [_about(data, runs), _verdicts(groups), *(f"![{p.stem}](results/{p.name})" for p in drawn)]
    parts += [_regime(regime, groups) for regime in regimes]
    return "\n\n".join(part for part in parts if part)


def _about(data: Mapping[str, Any], runs: Sequence[Run]) -> str:
    about = data["about"]
    rounds = max((run.round for run in runs), default=0)
    versions = "; ".join(", ".join(found) for found in data["versions"].values() if found)
    where = f"{about.get('date', '')}, {about['machine']}, real models on {about['device']}"
    how = f"{'one round' if rounds == 1 else f'median of {rounds} rounds'}{', short runs' if about['quick'] else ''}"
    lines = [f"{where}; {how}. {versions}".strip(), *(f"**{one} gave another answer.**" for one in data["disagree"])]
    return "\n".join([*lines, *(f"**{one} did not run.**" for one in data.get("missing", ()))])


def _verdicts(groups: Groups) -> str:
    found = targets.verdicts(groups)
    rows = [(str(v.target), f"{v.ratio:.2f} ({v.peer})", "reached" if v.met else "**missed**") for v in found]
    return table(("Target", "Measured", ""), rows) if rows else ""


def _regime(regime: Regime, groups: Groups) -> str:
    peers = [name for name in PEERS if any(key[0] == regime.name and key[2] == name for key in groups)]
    shown = [s for s in regime.scenarios if any(key[:2] == (regime.name, s.name) for key in groups)]
    title = f"**{regime.title}** (`{regime.name}`), batches of at most {regime.max_batch}, SLO {regime.slo_s:g} s"
    rows = [_row(regime, scenario, peers, groups) for scenario in shown if not scenario.kill_at_s]
    parts = [title + ". Images/s · p99 ms · CPU ms an image; in the open loops, in brackets, images/s within the SLO."]
    if rows:
        parts.append(table(("Load", *peers), rows))
    parts += [_killed(regime, scenario, peers, groups) for scenario in shown if scenario.kill_at_s]
    return "\n\n".join(parts)


def _row(regime: Regime, scenario: Scenario, peers: Sequence[str], groups: Groups) -> tuple[str, ...]:
    found = [groups.get((regime.name, scenario.name, peer), []) for peer in peers]
    rate = max((run.sent / scenario.seconds for runs in found for run in runs), default=0)
    name = f"{scenario.name} ({rate:.0f}/s)" if scenario.share else scenario.name
    return (name, *(_cell(scenario, runs) for runs in found))


def _cell(scenario: Scenario, runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    good = f" ({number(summary.median(runs, 'good_per_s'))})" if scenario.share else ""
    rate = number(summary.median(runs, "images_per_s")) + good
    cell = f"{rate} · {number(summary.median(runs, 'p99_ms'))} · {number(summary.median(runs, 'cpu_ms'))}"
    refused, lost, sent = (sum(getattr(run, name) for run in runs) for name in ("refused", "lost", "sent"))
    losses = [f"{100 * count / sent:.0f} % {word}" for count, word in ((refused, "refused"), (lost, "lost")) if count]
    return ", ".join([cell, *losses])


def _killed(regime: Regime, scenario: Scenario, peers: Sequence[str], groups: Groups) -> str:
    rows = []
    for peer in peers:
        if runs := groups.get((regime.name, scenario.name, peer)):
            counts = [str(sum(getattr(run, name) for run in runs)) for name in ("sent", "answered", "refused", "lost")]
            rows.append((peer, *counts, number(max((run.p99_ms or 0.0 for run in runs), default=0.0))))
    title = f"SIGKILL for the process with the model under an open loop at {100 * scenario.share:.0f} % of saturation:"
    return f"{title}\n\n" + table(("", "sent", "answered", "refused", "lost", "worst p99 ms"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with a heading."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def current(document: str) -> str:
    """The text between the marks of a document."""
    found = re.search(f"{MARKS[0]}(.*?)\n{MARKS[1]}", document, re.DOTALL)
    return found[1] if found else ""
