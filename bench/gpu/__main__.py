"""Build the baseline, check, time: python -m bench.gpu --out bench/results

    --plan          print the parts, their entries and seconds, and the files that are sent; status 1 if they do not fit
    --dry-run       run all entries on a CPU, in miniature, with stand-ins for the compiled kernels; the results
                    go to build/bench/gpu-dry-run unless --out says otherwise
    --table FILE    print the table of a file of results

--out is a file or a folder for gpu.json and what else is kept; the file is replaced after every entry. Entries with a
good result are not run again, so the same command continues. Exit status: 0 done, 1 something failed, 3 out of time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import child, supervise
from bench.gpu.cases import Plan
from bench.gpu.entry import CHECK, FAILED, POSTPONED
from bench.gpu.freight import CARRIED, GOLDEN, weigh
from bench.gpu.parts import PARTS, TOTAL_S, Part, described
from bench.gpu.record import Record
from bench.gpu.table import table

UNFINISHED = 3
RESULTS, DRY_RESULTS = Path("bench/results"), Path("build/bench/gpu-dry-run")  # a real run never reads the second


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    path = _results(options)
    plan = _plan(options, path)
    if options.plan:
        weighed = weigh(options.sources)
        print(described(plan, weighed))
        return int(bool(weighed.problems))
    if options.child or options.warm:
        return _child(plan, options, path)
    return _parent(plan, options, path)


def _parent(plan: Plan, options: argparse.Namespace, path: Path) -> int:
    if not plan.dry_run:
        _need_device()
    parts = [part for part in PARTS if part.name in options.only.split(",")]
    shared = [f"--out={path}", f"--work={plan.work}", f"--golden={options.golden}", *["--dry-run"] * plan.dry_run]
    orders = supervise.Orders(tuple(shared), options.sources, plan.work, plan.dry_run)
    record = supervise.run(parts, plan, orders, path, options.seconds)
    counts = Counter(record.status(entry) for part in parts for entry in part.of(plan))
    print(table(record.data))
    print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
    return 1 if counts[FAILED] else UNFINISHED if counts[POSTPONED] else 0


def _child(plan: Plan, options: argparse.Namespace, path: Path) -> int:
    child.start(plan)
    entries, checks = (_part(name).of(plan) for name in (options.child or options.warm, CHECK))
    if options.warm:
        share, of = map(int, options.share.split("/"))
        child.warm(entries, Record(path), share, of, options.until)
        return 0
    try:
        return child.run(plan, entries, checks, Record(path), options.until)
    except SystemExit as error:
        print(error, file=sys.stderr, flush=True)
        return supervise.REFUSED


def _part(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)


def _results(options: argparse.Namespace) -> Path:
    out: Path = options.out or (DRY_RESULTS if options.dry_run else RESULTS)
    return out if out.suffix == ".json" else out / "gpu.json"


def _plan(options: argparse.Namespace, path: Path) -> Plan:
    work = options.work or (path.parent / "work" if options.dry_run else Path(tempfile.gettempdir()) / "vim-bench-gpu")
    found = options.golden if all((options.golden / name).exists() for name in GOLDEN) else None
    return Plan(options.dry_run, work.resolve(), path.parent, found)


def _need_device() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --dry-run runs all entries without one")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(part.name for part in PARTS), help="parts to run")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="longest time for everything")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sources", type=Path, default=CARRIED, help="folder of the .tar.gz to build and of wheels/")
    parser.add_argument("--golden", type=Path, default=CARRIED / "golden", help="a copy of the golden data")
    parser.add_argument("--work", type=Path, help="folder for builds and caches")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--table", type=Path)
    for hidden in ("--child", "--warm", "--share"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    child.leave(main())
