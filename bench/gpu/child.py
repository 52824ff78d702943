"""A process of a run: the entries of one part, in order. It ends when the device is lost; the parent starts another."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence

import torch

from bench.gpu import cases, faults, jobs, sweep
from bench.gpu.cases import Plan
from bench.gpu.entry import FAILED, POSTPONED, SWEEP, Entry, attempt, why_not
from bench.gpu.record import Record, describe

LOST = 5  # exit status: the device can no longer be used by this process


def start(plan: Plan) -> None:
    """Make this process ready. It ends with its parent."""
    jobs.die_with_parent()
    if plan.dry_run:
        torch.set_num_threads(1)
    cases.prepare(plan)
    if plan.dry_run:
        faults.install()


def run(plan: Plan, entries: Sequence[Entry], checks: Sequence[Entry], record: Record, until: float) -> int:
    """Run the entries that are not settled yet; returns the exit status."""
    record.accept(describe(dry_run=plan.dry_run))
    for entry in entries:
        if record.is_settled(entry):
            continue
        left = until - time.time()
        values = why_not(entry, checks, record.get)
        if values is None and entry.seconds > left:
            values = {"status": POSTPONED, "reason": f"needs {entry.seconds:.0f} s, {left:.0f} were left"}
        if values is None:
            values = _timed(record, entry)
        record.put(entry.part, entry.name, values)
        if entry.part == SWEEP:
            sweep.write_table(plan, record.data[SWEEP])
        if values["status"] == FAILED and not _usable(plan.device):
            return LOST
        _release(plan.device)
    return 0


def warm(entries: Sequence[Entry], record: Record, share: int, of: int, until: float) -> None:
    """Run a share of the remaining entries to fill the caches of compiled code; their results are not used."""
    for entry in [entry for entry in entries if not record.is_settled(entry)][share::of]:
        if time.time() < until:
            print(f"warm: {entry.name}: {attempt(entry)['status']}", flush=True)


def _timed(record: Record, entry: Entry) -> dict[str, object]:
    record.begin(entry)
    start = time.monotonic()
    values = attempt(entry)
    return {**values, "took_s": round(time.monotonic() - start, 1)}


def _usable(device: torch.device) -> bool:
    """Return whether the device still works in this process: an illegal access ends that for good."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).item() == 1)
    except Exception:
        return False


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def leave(status: int) -> None:
    """End this process at once: page-locked memory and graphs need no clean-up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
