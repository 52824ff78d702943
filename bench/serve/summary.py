"""Records of requests -> figures of one run -> medians and ratios over the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.serve.load import Records

REFUSED = frozenset({429, 503})
GOOD = 200


@dataclass(frozen=True)
class Run:
    """One server under one load, once. Times in milliseconds; None if there was no answer."""

    regime: str
    scenario: str
    peer: str
    round: int
    sent: int
    answered: int
    refused: int  # refused, with the advice to try again later
    lost: int  # any other answer, none, or too late for the client
    images_per_s: float
    good_per_s: float  # images answered within the SLO
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    cpu_ms: float | None  # CPU of the server for each image answered
    sender_cpu_ms: float | None


Key = tuple[str, str, str]  # regime, scenario, peer


def figures(records: Records, *, seconds: float, slo_s: float, images: int) -> dict[str, Any]:
    """The figures of requests that were due after the warm-up; throughput counts the answers within the run's time."""
    counted = [(due, end, status) for due, end, status in zip(records.due, records.end, records.status, strict=True)]
    due_now = [one for one in counted if one[0] >= 0]
    good = [end - due for due, end, status in due_now if status == GOOD]
    in_time = [one for one in counted if one[2] == GOOD and 0 <= one[1] < seconds]
    within = sum(end - due <= slo_s for due, end, _ in in_time)
    refused = sum(status in REFUSED for _, _, status in due_now)
    return {
        "sent": len(due_now),
        "answered": len(good),
        "refused": refused,
        "lost": len(due_now) - len(good) - refused,
        "images_per_s": round(images * len(in_time) / seconds, 2),
        "good_per_s": round(images * within / seconds, 2),
        **{f"p{percent}_ms": _ms(quantile(good, percent)) for percent in (50, 95, 99)},
    }


def quantile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that this percentage of the values does not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def median(runs: Iterable[Run], name: str) -> float | None:
    """The median of one figure over the runs that have it."""
    found = [value for run in runs if (value := getattr(run, name)) is not None]
    return statistics.median(found) if found else None


def ratio(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> float | None:
    """The median of the rounds' ratios; both values of a ratio were measured under the same conditions."""
    others = {run.round: getattr(run, name) for run in theirs}
    found = [getattr(run, name) / others[run.round] for run in ours if _both(run, others, name)]
    return statistics.median(found) if found else None


def by_key(runs: Iterable[Run]) -> dict[Key, list[Run]]:
    """Runs of one server in one scenario, in order."""
    found: dict[Key, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.round):
        found.setdefault((run.regime, run.scenario, run.peer), []).append(run)
    return found


def read(entries: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Convert runs to the form of a file of results."""
    return [Run(**entry) for entry in entries]


def write(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Convert runs from the form of a file of results."""
    return [asdict(run) for run in runs]


def _both(run: Run, others: Mapping[int, Any], name: str) -> bool:
    return bool(others.get(run.round)) and getattr(run, name) is not None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 2)
