"""The result file. It is replaced as a whole after every entry, so it is complete whenever the run is killed."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu.entry import CHECK, FAILED, OK, OUT_OF_MEMORY, POSTPONED, RUNNING, Entry, Values

FORMAT = 2


class Record:
    """Results by part and name. One process at a time writes them; the others read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": FORMAT, "calls": 0}
        if path.is_file():
            self.data = json.loads(path.read_text(encoding="utf-8"))
        if self.data.get("format") != FORMAT:
            raise SystemExit(f"{path} is of another format: name another file with --out")

    def get(self, entry: Entry) -> Values:
        """Return the record of an entry, or None."""
        return dict(self.data.get(entry.part, {}).get(entry.name, {}))

    def status(self, entry: Entry) -> str | None:
        """Return the status of an entry, or None."""
        return self.get(entry).get("status")

    def is_final(self, entry: Entry) -> bool:
        """Return whether an entry has its result: good, or a batch that does not fit."""
        return self.status(entry) in ((OK,) if entry.part == CHECK else (OK, OUT_OF_MEMORY))

    def is_settled(self, entry: Entry) -> bool:
        """Return whether an entry has its result, or failed or was skipped in this call; the next one tries again."""
        this_call = self.get(entry).get("call") == self.data["calls"]
        return self.is_final(entry) or (this_call and self.status(entry) not in (None, POSTPONED, RUNNING))

    def begin_call(self) -> None:
        """Count a call; an entry that a killed call was running has failed."""
        while (left := self.running()) is not None:
            self._store(left[0], left[1], {"status": FAILED, "reason": "the call ended while this ran"})
        self.data["calls"] += 1
        self.write()

    def begin(self, entry: Entry) -> None:
        """Record that an entry is running, so that the file shows it if the process is killed."""
        self._store(entry.part, entry.name, {"status": RUNNING, "began": time.time()})

    def put(self, part: str, name: str, values: Values) -> None:
        """Store one result and write the file."""
        self._store(part, name, values)
        print(f"{part}: {name}: {json.dumps(values)}", flush=True)

    def running(self) -> tuple[str, str, float] | None:
        """Return part, name and start of the entry that runs, or that was running when the process was killed."""
        for part, entries in self.data.items():
            for name, values in entries.items() if isinstance(entries, dict) else ():
                if isinstance(values, dict) and values.get("status") == RUNNING:
                    return part, name, values["began"]
        return None

    def accept(self, about: Values) -> None:
        """Record the machine. Raises SystemExit if the file holds results of another one."""
        if self.data.setdefault("about", about) | {"date": ""} != about | {"date": ""}:
            raise SystemExit(f"{self.path} holds results of another machine or other versions: name another file")
        self.data["about"] = about
        self.write()

    def write(self) -> None:
        """Write the whole result file and replace the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        new.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        new.replace(self.path)

    def _store(self, part: str, name: str, values: Values) -> None:
        self.data.setdefault(part, {})[name] = _plain({**values, "call": self.data["calls"]})
        self.write()


def describe(*, dry_run: bool) -> Values:
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
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(name: str) -> str | None:
    try:
        return str(__import__(name).__version__)
    except ImportError:
        return None


def _plain(value: Any) -> Any:
    """Convert infinity to its name, because JSON has no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
