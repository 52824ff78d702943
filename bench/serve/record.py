"""The file of results: the measurements, the machine and the versions; written after every run."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

from bench.serve.summary import Run, read, write


class Record:
    """Runs in the file are not repeated; a file of another machine is not extended."""

    def __init__(self, path: Path, device: str, *, quick: bool = False, read_only: bool = False) -> None:
        self._path = path
        about = {"machine": _machine(), "device": device, "quick": quick}
        self.data: dict[str, Any] = {"about": about, "disagree": [], "runs": []}
        self.data |= {name: {} for name in ("versions", "memory_mb", "missing")}
        self.runs: list[Run] = []
        if path.is_file():
            self.load(path)
            if not read_only and any(self.data["about"].get(name) != value for name, value in about.items()):
                raise SystemExit(
                    f"{path} holds results of another machine, device or length ({self.data['about']}): "
                    "name another file with --out"
                )

    def load(self, path: Path) -> None:
        """Read the results of a file."""
        self.data = json.loads(path.read_text())
        self.runs = read(self.data["runs"])

    def has(self, regime: str, scenario: str, peer: str, number: int) -> bool:
        """Whether this run has been measured."""
        wanted = (regime, scenario, peer, number)
        return any((run.regime, run.scenario, run.peer, run.round) == wanted for run in self.runs)

    def add(self, run: Run) -> None:
        """Add a run and write the file."""
        self.runs.append(run)
        self.save()

    def note(self, name: str, key: str, value: Any) -> None:
        """Add a value that is not a run."""
        self.data[name][key] = value
        self.save()

    def disagrees(self, what: str) -> None:
        """Record a server whose answers differ from ours."""
        self.data["disagree"] = sorted({*self.data["disagree"], what})
        self.save()

    def save(self) -> None:
        """Write the file completely or not at all."""
        self.data["about"]["date"] = date.today().isoformat()
        self.data["runs"] = write(self.runs)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(_text(self.data))
        draft.replace(self._path)


def _text(data: dict[str, Any]) -> str:
    """One line for each run, so that a change shows what changed."""
    head = json.dumps({name: value for name, value in data.items() if name != "runs"}, indent=1)
    runs = ",\n  ".join(json.dumps(run) for run in data["runs"])
    return f'{head[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


def _machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} CPUs, {cpu}, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
