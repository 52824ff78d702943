"""The loads of all servers, as values. `load_of` makes the load for one server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bench.serve.load import Load
from bench.serve.peers import ONE, OURS, OWN, PEERS, PILLOW, Peer

SMALL, MEDIUM, LARGE = "12 kB", "100 kB", "2 MB"
SIDES = {
    SMALL: ((248, 186), 88, 16),
    MEDIUM: ((800, 600), 90, 12),
    LARGE: ((4000, 3000), 89, 3),
}  # side, quality, files
MIXED = {SMALL: 0.6, MEDIUM: 0.37, LARGE: 0.03}
SATURATION = "c=64"  # the best peer's throughput in this scenario is the base of the open loops' rates


@dataclass(frozen=True)
class Scenario:
    """One pattern of load: closed (`clients`), or open at `share` of what the best peer answers at saturation."""

    name: str
    clients: int = 0
    share: float = 0.0
    sizes: Mapping[str, float] = field(default_factory=lambda: {SMALL: 1.0})
    op: str = "classify"
    images: int = 1
    burst: int = 0
    slow_clients: int = 0
    kill_at_s: float = 0.0
    seconds: float = 1.5
    patience_s: float = 2.0
    says_ms: int = 0  # X-Request-Timeout-Ms, sent to all servers; most ignore it


@dataclass(frozen=True)
class Regime:
    """A model and its load. A request that is answered later than `slo_s` does not count."""

    name: str
    title: str
    model: str
    scenarios: tuple[Scenario, ...]
    max_batch: int = 8
    slo_s: float = 0.1
    decoder: str = "pillow"  # of the peers
    peers: tuple[str, ...] = (OURS, *(name for name in PEERS if name not in OWN))

    def chosen(self, names: frozenset[str]) -> tuple[Scenario, ...]:
        """The scenarios with these names, and those that their rates depend on; all without names."""
        wanted = [s for s in self.scenarios if not names or s.name in names]
        needs = any(s.share for s in wanted) and SATURATION not in {s.name for s in wanted}
        return (*((s for s in self.scenarios if s.name == SATURATION) if needs else ()), *wanted)


_KILL = Scenario("a worker killed", share=0.25, seconds=6, kill_at_s=1.5, patience_s=8)
_FAST = (
    Scenario(SATURATION, clients=64),
    Scenario("c=1", clients=1),
    Scenario("c=8", clients=8),
    Scenario("c=256", clients=256),
    Scenario("c=64, 100 kB", clients=64, sizes={MEDIUM: 1.0}),
    Scenario("c=8, 2 MB", clients=8, sizes={LARGE: 1.0}),
    Scenario("c=32, mixed sizes", clients=32, sizes=MIXED),
    Scenario("c=64, embed", clients=64, op="embed"),
    Scenario("c=4, requests of 64 images", clients=4, images=64),
    Scenario("c=16 beside 4 slow clients", clients=16, slow_clients=4),
    Scenario("open loop, 70 %", share=0.7),
    Scenario("bursts of 64, 50 %", share=0.5, burst=64),
    Scenario("overload, 300 %", share=3.0),
    Scenario("overload, 300 %, clients say 100 ms", share=3.0, says_ms=100),
    _KILL,
)
_SLOW = (
    Scenario(SATURATION, clients=64, seconds=3),
    Scenario("c=1", clients=1, seconds=2),
    Scenario("c=32, mixed sizes", clients=32, sizes=MIXED, seconds=3),
    Scenario("open loop, 70 %", share=0.7, seconds=3),
    Scenario("overload, 300 %", share=3.0, seconds=3),
    Scenario("overload, 300 %, clients say 500 ms", share=3.0, seconds=3, says_ms=500),
    replace(_KILL, seconds=8),
)
_SLOWEST = tuple(replace(s, seconds=4, patience_s=6) for s in (replace(_SLOW[0], clients=16), _SLOW[4]))
_DECODER = (Scenario(SATURATION, clients=64), Scenario("c=64, 100 kB", clients=64, sizes={MEDIUM: 1.0}))
REGIMES = {
    regime.name: regime
    for regime in (
        Regime(
            "a",
            "A stand-in of 0.1 ms an image",
            "standin",
            _FAST,
            32,
            peers=(OURS, ONE, *(name for name in PEERS if name not in OWN)),
        ),
        Regime(
            "decoder",
            "The same, every server with this project's decoder; and this service with Pillow's",
            "standin",
            _DECODER,
            32,
            decoder="compiled",
            peers=(OURS, *(name for name in PEERS if name not in OWN), PILLOW),
        ),
        Regime("demo", "The demo model on the CPU", "demo", _SLOW, slo_s=0.5),
        Regime(
            "vim-tiny", "vim-tiny on the CPU, random weights of the released shape", "vim-tiny", _SLOWEST, slo_s=2.0
        ),
    )
}
DRY = Regime(
    "dry run",
    "A miniature model, to see that everything works",
    "miniature",
    (
        Scenario(SATURATION, clients=4, seconds=0.5),
        Scenario("overload, 300 %", share=3.0, seconds=0.3, patience_s=0.5),
        replace(_KILL, share=0.1, seconds=1.0, kill_at_s=0.3, patience_s=20),
    ),
    peers=(OURS, "FastAPI"),
)


def load_of(scenario: Scenario, peer: Peer, port: int, corpus: str, rate: float, seed: int) -> Load:
    """The load of a scenario for one server; `rate` is that of the open loops."""
    together = scenario.images > 1 and peer.many is not None
    return Load(
        port=port,
        path=peer.many if together and peer.many else peer.paths[scenario.op],
        corpus=corpus,
        sizes=dict(scenario.sizes),
        seconds=scenario.seconds,
        clients=scenario.clients,
        rate=rate,
        burst=scenario.burst,
        images=scenario.images,
        form=together or peer.form,
        slow_clients=scenario.slow_clients,
        patience_s=scenario.patience_s,
        says_ms=scenario.says_ms,
        seed=seed,
    )
