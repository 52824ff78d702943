"""The parts of a run, in order, with the seconds that each may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu import checks, facts, faults, kernels, models, profile, served, sweep
from bench.gpu.build import EXTENSIONS
from bench.gpu.cases import Plan
from bench.gpu.entry import CHECK, HEADLINE, KERNELS, MODELS, SERVICE, SWEEP, Entry
from bench.gpu.freight import MOST_BYTES, Freight

TOTAL_S = 480


@dataclass(frozen=True, slots=True)
class Part:
    """Its entries run in order in one process, or in the next process if that one ends; `warm` processes compile first.

    Each of these runs its share of the entries and forgets the results: Triton keeps what was compiled.
    """

    name: str
    seconds: float
    entries: Callable[[Plan], list[Entry]]
    warm: int = 0
    warm_seconds: float = 0

    def of(self, plan: Plan) -> list[Entry]:
        """Return its entries; in a dry run with the requested faults."""
        found = self.entries(plan)
        return [faults.applied(entry) for entry in found] if plan.dry_run else found


def _facts_and_checks(plan: Plan) -> list[Entry]:
    return facts.entries(plan) + checks.entries(plan)


def _kernels_and_counters(plan: Plan) -> list[Entry]:
    return kernels.entries(plan) + profile.entries(plan)


PARTS = (
    Part(CHECK, 130, _facts_and_checks, warm=12, warm_seconds=35),
    Part(HEADLINE, 72, models.headline),
    Part(KERNELS, 56, _kernels_and_counters),
    Part(SWEEP, 60, sweep.entries, warm=12, warm_seconds=20),
    Part(MODELS, 49, models.entries),
    Part(SERVICE, 110, served.entries),
)


def described(plan: Plan, weighed: Freight) -> str:
    """Return the plan as text: parts, entries, seconds, and the files that are sent."""
    lines = []
    for part in PARTS:
        entries = part.of(plan)
        expected = sum(entry.seconds for entry in entries)
        warm = f", {part.warm} processes compile for at most {part.warm_seconds:.0f} s" if part.warm else ""
        lines.append(f"{part.name}: at most {part.seconds:.0f} s, {len(entries)} entries, {expected:.0f} s{warm}")
        lines += [f"    {entry.seconds:5.1f} s  {entry.name}" for entry in entries]
    lines.append(f"all parts: at most {sum(part.seconds for part in PARTS):.0f} s of {TOTAL_S}")
    lines.append("beside them: " + ", ".join([*EXTENSIONS, served.WHEELS]))
    lines.append(f"travels: tree {weighed.tree:,} bytes")
    lines += [f"    {size:12,} bytes  {name}" for name, size in weighed.carried.items()]
    lines.append(f"    {weighed.tree + sum(weighed.carried.values()):12,} of {MOST_BYTES:,} bytes")
    return "\n".join([*lines, *(f"problem: {text}" for text in weighed.problems)])
