"""The parent of a run: one process for each part, another one if it dies; time limits; background commands.

A process that dies, hangs or loses its device loses one entry: that entry is recorded as failed, and the next process
continues after it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import served
from bench.gpu.build import EXTENSIONS, environment
from bench.gpu.cases import Plan
from bench.gpu.entry import BUILD, FAILED, POSTPONED, Entry
from bench.gpu.jobs import Job, kill, outcome, tail
from bench.gpu.parts import Part
from bench.gpu.record import Record

BUILD_S = 300
REFUSED = 4  # the exit status of a process that may not add to the file of results
POLL_S = 0.1
FEW = 6  # so few entries compile equally fast without warming
TIME_OVER = "the time of its part was over"


@dataclass(frozen=True, slots=True)
class Orders:
    """The options that the parent passes to its processes."""

    options: tuple[str, ...]
    sources: Path
    work: Path
    dry_run: bool

    def command(self, *more: str) -> list[str]:
        """Return the command of a process."""
        return [sys.executable, "-m", "bench.gpu", *self.options, *more]

    def environment(self) -> dict[str, str]:
        """Return its environment: caches that later calls use again; a dry run interprets Triton's kernels."""
        caches = {"TRITON_CACHE_DIR": str(self.work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor")}
        return os.environ | caches | ({"TRITON_INTERPRET": "1"} if self.dry_run else {})


def run(parts: Sequence[Part], plan: Plan, orders: Orders, path: Path, seconds: float) -> Record:
    """Run the parts, then the postponed entries in the remaining time; returns the record."""
    end = time.time() + seconds
    Record(path).begin_call()
    beside = start_jobs(orders)
    try:
        for attempt in ("first", "with the time that is left"):
            for part in parts:
                longest = part.seconds if attempt == "first" else seconds
                _run_part(part, plan, orders, path, min(end, time.time() + longest), warm=attempt == "first")
                _note_jobs(beside, plan, path)
    finally:
        for job in beside:
            job.stop()
    record = _note_jobs(beside, plan, path)
    _note_what_did_not_run(parts, plan, record)
    return record


def start_jobs(orders: Orders) -> list[Job]:
    """Start the build of the baseline and the installation of the wheels."""
    folder = orders.work / "jobs"
    built = ["--sources", str(orders.sources), "--target", str(orders.work / "built")]
    dry = ["--dry-run"] if orders.dry_run else []
    found = [
        Job(name, [sys.executable, "-m", "bench.gpu.build", name, *built, *dry], folder, BUILD_S, environment())
        for name in EXTENSIONS
    ]
    wheels = sorted((orders.sources / "wheels").glob("*.whl"))
    if wheels and not orders.dry_run:
        found.append(Job(served.WHEELS, served.install_wheels(wheels, orders.work / served.WHEELS), folder, 60))
    return found


def _run_part(part: Part, plan: Plan, orders: Orders, path: Path, until: float, *, warm: bool) -> None:
    entries = part.of(plan)
    left = [entry for entry in entries if not Record(path).is_settled(entry)]
    if time.time() >= until or not left:
        return
    if warm and part.warm and len(left) > FEW:
        _warm(part, orders, min(until, time.time() + part.warm_seconds))
    while time.time() < until:
        before = [entry for entry in entries if not Record(path).is_settled(entry)]
        log = orders.work / f"{part.name}.log"
        status, reason = _watch(
            _start(orders, log, "--child", part.name, "--until", str(until)), log, path, before, until
        )
        if status == 0:
            return
        if status == REFUSED:
            raise SystemExit(tail(log)[-1])
        if not _note_death(Record(path), before, reason):
            return


def _warm(part: Part, orders: Orders, until: float) -> None:
    """Start processes that compile the kernels of the entries, each for a share of them."""
    count, of = (1, 1000) if orders.dry_run else (part.warm, part.warm)
    logs = [orders.work / f"warm-{part.name}-{share}.log" for share in range(count)]
    shares = [
        _start(orders, log, "--warm", part.name, "--share", f"{share}/{of}", "--until", str(until))
        for share, log in enumerate(logs)
    ]
    while time.time() < until and any(process.poll() is None for process in shares):
        time.sleep(POLL_S)
    for process in shares:
        _end(process)


def _start(orders: Orders, log: Path, *more: str) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        return subprocess.Popen(orders.command(*more), stderr=errors, env=orders.environment(), start_new_session=True)


def _watch(
    process: subprocess.Popen[bytes], log: Path, path: Path, entries: Sequence[Entry], until: float
) -> tuple[int | None, str]:
    """Wait for a process, or end it when its time or that of its entry is over: its status, and why it ended."""
    limits = {entry.name: entry.limit for entry in entries}
    reason = ""
    while process.poll() is None and not reason:
        time.sleep(POLL_S)
        running = Record(path).running()
        if time.time() > until:
            reason = TIME_OVER
        elif running and time.time() - running[2] > limits.get(running[1], float("inf")):
            reason = f"took longer than {limits[running[1]]:.0f} s"
    _end(process)
    ended = f"its process ended with {process.returncode}: {' | '.join(tail(log)[-4:])}"
    return process.returncode, reason or ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, which leads its own group, and what it has started."""
    kill(process.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process inside the driver may not end
        process.wait(10)


def _note_death(record: Record, entries: Sequence[Entry], reason: str) -> bool:
    """Record why a process ended, at the entry that it was running; returns whether another process should continue."""
    running = record.running()
    if running is not None:
        status = POSTPONED if reason == TIME_OVER else FAILED
        record.put(running[0], running[1], {"status": status, "reason": reason})
        return True
    left = [entry for entry in entries if not record.is_settled(entry)]
    if len(left) < len(entries):
        return True
    for entry in left:
        record.put(entry.part, entry.name, {"status": FAILED, "reason": reason})
    return False


def _note_jobs(beside: Sequence[Job], plan: Plan, path: Path) -> Record:
    record = Record(path)
    for job in beside:
        found = outcome(plan.jobs, job.name)
        if found is not None and record.data.get(BUILD, {}).get(job.name, {}).get("call") != record.data["calls"]:
            record.put(BUILD, job.name, found)
    return record


def _note_what_did_not_run(parts: Sequence[Part], plan: Plan, record: Record) -> None:
    for part in parts:
        for entry in part.of(plan):
            if record.status(entry) is None:
                record.put(entry.part, entry.name, {"status": POSTPONED, "reason": "the time was over before its turn"})
