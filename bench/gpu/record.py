"""The result file: entries are kept, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

Entry = dict[str, Any]


class OutOfTime(Exception):  # noqa: N818 - an event
    """The time for this part is over; the next run does the rest."""


class Record:
    """Results by part and name, written after each entry."""

    def __init__(self, path: Path, seconds: float, *, dry_run: bool) -> None:
        self.path = path
        self._ends = time.monotonic() + seconds
        written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        about = describe(dry_run=dry_run)
        if written and written["about"] | {"date": ""} != about | {"date": ""}:
            raise SystemExit(f"{path} holds results of another machine or other versions: name another file with --out")
        self.data: dict[str, Any] = written or {"about": about}

    def has(self, part: str, name: str) -> bool:
        """Return whether this entry exists."""
        return name in self.data.get(part, {})

    def put(self, part: str, name: str, entry: Entry) -> None:
        """Store one result and write the file."""
        self.data.setdefault(part, {})[name] = entry
        self.data["about"]["date"] = time.strftime("%Y-%m-%d")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {name}: {json.dumps(entry)}", flush=True)

    def check_time(self) -> None:
        """Raise OutOfTime if no further entry should start."""
        if time.monotonic() > self._ends:
            raise OutOfTime


def describe(*, dry_run: bool) -> Entry:
    """Return device and versions; results of different ones are never merged."""
    gpu = torch.cuda.is_available() and not dry_run
    return {
        "dry_run": dry_run,
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": "",
    }


def _version(name: str) -> str | None:
    try:
        return str(__import__(name).__version__)
    except ImportError:
        return None
