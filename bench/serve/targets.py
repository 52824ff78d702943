"""The targets of this service relative to the others, and whether it reaches them, computed from the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.serve import summary
from bench.serve.peers import OURS, OWN
from bench.serve.scenarios import SATURATION
from bench.serve.summary import Key, Run

Groups = Mapping[Key, Sequence[Run]]


@dataclass(frozen=True)
class Target:
    """Our figure over another's, and the bound."""

    regime: str
    scenario: str
    figure: str  # of `Run`
    bound: float
    least: bool  # at least the bound, else at most
    peer: str = ""  # compared with this peer; empty: with the best one

    def __str__(self) -> str:
        whose = f"{self.peer}'s" if self.peer else "the best peer's"
        bound = f"{'at least' if self.least else 'at most'} {self.bound:g} x {whose}"
        return f"{self.regime}, {self.scenario}: {WORDS[self.figure]} {bound}"


@dataclass(frozen=True)
class Verdict:
    """A target, the measured ratio, and the peer."""

    target: Target
    ratio: float
    peer: str

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        target = self.target
        return self.ratio >= target.bound if target.least else self.ratio <= target.bound


WORDS = {"images_per_s": "throughput", "p99_ms": "p99", "lost": "lost"}
_LOADED = ("open loop, 70 %", "overload, 300 %", "c=32, mixed sizes")
TARGETS = (
    *(Target("a", scenario, "images_per_s", 1.2, least=True) for scenario in (SATURATION, "c=64, 100 kB")),
    *(Target("a", scenario, "images_per_s", 2.0, True, "LitServe") for scenario in (SATURATION, "c=64, 100 kB")),
    Target("a", "open loop, 70 %", "p99_ms", 1.0, least=False),
    *(Target(regime, SATURATION, "images_per_s", 0.97, least=True) for regime in ("demo", "vim-tiny")),
    *(Target("demo", scenario, "p99_ms", 1.0, least=False) for scenario in ("overload, 300 %", "c=32, mixed sizes")),
    Target("vim-tiny", "overload, 300 %", "p99_ms", 1.0, least=False),
)
KILLED = "a worker killed"


def verdicts(groups: Groups) -> list[Verdict]:
    """The verdicts of all targets that were measured."""
    return [found for target in TARGETS if (found := verdict(target, groups)) is not None]


def verdict(target: Target, groups: Groups) -> Verdict | None:
    """The verdict against the best peer."""
    ours = groups.get((target.regime, target.scenario, OURS), [])
    ratios = [
        (found, peer)
        for (regime, scenario, peer), theirs in groups.items()
        if (regime, scenario) == (target.regime, target.scenario) and _meant(peer, target)
        if (found := summary.ratio(ours, theirs, target.figure)) is not None
    ]
    if not ratios:
        return None
    return Verdict(target, *(min(ratios) if target.least else max(ratios)))


def _meant(peer: str, target: Target) -> bool:
    return peer == target.peer if target.peer else peer not in OWN
