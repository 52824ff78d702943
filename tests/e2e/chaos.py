"""`make chaos`: long runs of real faults under constant mixed load, and a table of lost requests (there must be none).

    python -m tests.e2e.chaos [--minutes 10] [--times 20] [--only NAME ...] [--json FILE]

Each line starts its own server on 127.0.0.1 and ends it; every good answer is compared with that of an undisturbed
server. Exit status 1 if a line fails. In FILE a line replaces the one of the same name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.bench import Bench, Line
from tests.e2e.edge import EDGE
from tests.e2e.scenarios import SCENARIOS as FAULTS
from tests.e2e.server import ROOT

SCENARIOS = FAULTS | EDGE
TIMED = "random_faults"


def main() -> int:
    """Run the scenarios, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help=f"length of {TIMED}, faults at random moments (default 10)")
    parser.add_argument("--times", type=int, default=20, help="how often SIGKILL and SIGTERM are sent")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.minutes is not None and TIMED not in options.only:
        parser.error(f"--minutes is the length of {TIMED} only; --times is how often the others repeat a fault")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.prepare(Path(folder), options.minutes or 10, options.times)
        for name in options.only:
            lines.append(asyncio.run(SCENARIOS[name](bench)))
            print(f"{'ok  ' if lines[-1].held else 'FAIL'}  {lines[-1].name:44}  {lines[-1].says}", flush=True)
            if options.json:
                enter(options.json, name, lines[-1])
    return 0 if all(line.held for line in lines) else 1


def enter(file: Path, scenario: str, line: Line) -> None:
    """Write a line to the file, with the date, the commit and the machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    known[scenario] = asdict(line) | {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPU only",
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }
    ordered = {name: known[name] for name in SCENARIOS if name in known}
    file.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
