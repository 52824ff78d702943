"""Example runs for the tests of summary and report."""

from __future__ import annotations

from dataclasses import replace

from bench.serve.peers import OURS
from bench.serve.summary import Run

RUN = Run("a", "c=64", OURS, 1, 100, 100, 0, 0, 100.0, 90.0, 5.0, 9.0, 10.0, 2.0, 0.2)


def runs() -> list[Run]:
    """Three servers at saturation and under overload, two rounds; and a kill."""
    rates = {OURS: 120.0, "LitServe": 50.0, "mosec": 110.0}
    saturated = [replace(RUN, peer=peer, images_per_s=rate, round=n) for peer, rate in rates.items() for n in (1, 2)]
    overload = [
        replace(run, scenario="overload, 300 %", good_per_s=run.images_per_s / 2, sent=495, refused=99, p99_ms=300.0)
        for run in saturated
    ]
    killed = [replace(RUN, scenario="a worker killed", peer=p, lost=n, answered=100 - n) for p, n in _LOST.items()]
    return [*saturated, *overload, *killed]


_LOST = {OURS: 0, "mosec": 7}
