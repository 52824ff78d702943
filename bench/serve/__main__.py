"""Compare this service with its alternatives on the same machine, model and photographs: python -m bench.serve

    --regimes a,demo        which of: a, decoder, demo, vim-tiny
    --peers mosec,FastAPI   which others; this service always runs
    --scenarios "c=64"      which of a regime's
    --quick                 one round of short runs, into build/bench/serve-quick.json
    --dry-run               a miniature model, to test the programs, into build/bench/serve-dry-run.json
    --report                only write bench/results/serve.md and the plots again
    --out mine.json         another file than bench/results/serve.json, which may be of another machine

Runs that are in the file of results are not repeated, except by a dry run. Exit status: 0 done, 3 time was up, run
again to continue.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from bench.serve import report, runs
from bench.serve.environments import DEFAULT_CACHE
from bench.serve.peers import OURS, PEERS
from bench.serve.record import Record
from bench.serve.scenarios import DRY, REGIMES, Regime

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "serve.json"
TRIALS = ROOT / "build" / "bench"  # not under version control
UNFINISHED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write the report. Returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    out = results_file(options)
    if options.dry_run and options.out is None and not options.report:
        out.unlink(missing_ok=True)
    quick = options.quick or options.dry_run
    record = Record(out, options.device, quick=quick, read_only=options.report)
    status = 0
    if not options.report:
        try:
            runs.run_all(_plan(options), _regimes(options), record)
        except runs.OutOfTime:
            print("time is up, run again to continue", file=sys.stderr)
            status = UNFINISHED
    if out == RESULTS:
        report.update(record.data, record.runs)
    else:
        print(report.text(record.data, record.runs))
    return status


def results_file(options: argparse.Namespace) -> Path:
    """The path of the results; quick and dry runs never write to the file of full runs."""
    if options.out is not None:
        return Path(options.out).resolve()
    if options.dry_run:
        return TRIALS / "serve-dry-run.json"
    return TRIALS / "serve-quick.json" if options.quick else RESULTS


def _plan(options: argparse.Namespace) -> runs.Plan:
    peers = _names(options.peers, PEERS)
    return runs.Plan(
        peers=(*(peers or PEERS), *(() if not peers or OURS in peers else (OURS,))),
        scenarios=frozenset(one for one in options.scenarios.split(";") if one),
        rounds=1 if options.quick or options.dry_run else options.rounds,
        deadline=time.monotonic() + options.seconds,
        device=options.device,
        cache=options.cache,
        shorter=2.0 if options.quick else 1.0,
    )


def _regimes(options: argparse.Namespace) -> list[Regime]:
    if options.dry_run:
        return [DRY]
    return [REGIMES[name] for name in _names(options.regimes, REGIMES) or REGIMES]


def _names(text: str, known: object) -> list[str]:
    assert isinstance(known, dict)
    found = [one.strip() for one in text.split(",") if one.strip()]
    if unknown := [one for one in found if one not in known]:
        raise SystemExit(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regimes", default="")
    parser.add_argument("--peers", default="")
    parser.add_argument("--scenarios", default="", help="names with semicolons between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600, help="start no run after this time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the real models")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments, photographs, weights, logs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--report", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
