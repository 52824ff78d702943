"""The plots of the report, by matplotlib: throughput over clients, and p99 where the load is the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.serve import summary
from bench.serve.peers import OURS, PEERS
from bench.serve.summary import Key, Run

Groups = Mapping[Key, Sequence[Run]]
CLIENTS = {1: "c=1", 8: "c=8", 64: "c=64", 256: "c=256"}
LOADED = ("open loop, 70 %", "overload, 300 %", "c=32, mixed sizes")


def draw(groups: Groups, folder: Path) -> list[Path]:
    """Draw the plots that have runs; none if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    drawn = [_throughput(groups, folder / "serve-throughput.svg"), _latency(groups, folder / "serve-latency.svg")]
    return [path for path in drawn if path is not None]


def _throughput(groups: Groups, path: Path) -> Path | None:
    lines = {peer: _points(groups, peer) for peer in PEERS}
    if not any(len(points) > 1 for points in lines.values()):
        return None
    from matplotlib.figure import Figure

    figure = Figure((7, 3.6), layout="constrained")
    axes = figure.subplots()
    for peer, points in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", linewidth=2.5 if peer == OURS else 1, label=peer)
    axes.set(xscale="log", xlabel="clients", ylabel="images/s", title="a stand-in of 0.1 ms an image, 12 kB")
    axes.set_xticks(list(CLIENTS), [str(n) for n in CLIENTS])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    return path


def _points(groups: Groups, peer: str) -> list[tuple[int, float]]:
    found = {n: groups.get(("a", name, peer), []) for n, name in CLIENTS.items()}
    return [(n, rate) for n, runs in found.items() if (rate := summary.median(runs, "images_per_s")) is not None]


def _latency(groups: Groups, path: Path) -> Path | None:
    shown = [(regime, name) for regime in ("a", "demo") for name in LOADED if (regime, name, OURS) in groups]
    if not shown:
        return None
    from matplotlib.figure import Figure

    figure = Figure((7, 3.6), layout="constrained")
    axes = figure.subplots()
    peers = [peer for peer in PEERS if any((*where, peer) in groups for where in shown)]
    for index, peer in enumerate(peers):
        places = [i + 0.8 * index / len(peers) for i in range(len(shown))]
        heights = [summary.median(groups.get((*where, peer), []), "p99_ms") or 0.0 for where in shown]
        axes.bar(places, heights, 0.75 / len(peers), label=peer)
    axes.set_xticks([i + 0.35 for i in range(len(shown))], ["\n".join(where) for where in shown])
    axes.set(yscale="log", ylabel="p99 of what was answered, ms")
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    return path
