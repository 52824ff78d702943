"""Simulate a fleet of servers by discrete events: how many servers a load needs, and when to start more.

    python -m service tune --json > docs/operate/sizing/vim-tiny-cpu.json
    python -m tools.simulate_fleet --profile docs/operate/sizing/vim-tiny-cpu.json --out docs/operate/sizing

Every server has the queue of this service: an idle device takes the waiting images, up to the largest batch; a full
queue refuses. The profile holds what `tune` measured: seconds of a forward pass by batch size, and from the process's
start to ready; `--pod-seconds` adds the time that a cluster needs before that. Arrivals are Poisson; the balancer
compares two servers and takes the less busy one, which is close to least requests. The autoscaler is that of
Kubernetes: every 15 s it computes ceil(images in the fleet / threshold) servers, by the mean of the last 30 s. It
ignores differences within a tenth, at most doubles the number, and removes one server a minute after five minutes of
less load (`deploy/kubernetes/components/keda`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = dict[str, float]

POLL_S = 15.0
SETTLE_S = 300.0
REMOVE_EVERY_S = 60.0
MEAN_OVER_S = 30
TOLERANCE = 0.1
THRESHOLDS = (1, 2, 3, 4, 6, 8, 12, 16)
BINS = 400  # of the latency histogram: 1 ms to 1000 s, 66 to a decade


@dataclass(frozen=True)
class Profile:
    """The measurements of one server."""

    name: str
    pass_s: Floats  # [b]: seconds of a forward pass of b images, b = 0 .. largest batch
    start_s: float  # from the decision to start it until it is ready
    queue: int  # images admitted at most
    source: str

    @classmethod
    def read(cls, path: Path) -> Profile:
        """From JSON: name, batch_seconds {size: seconds}, start_seconds, queue_images, measured (where and when)."""
        values = json.loads(path.read_text(encoding="utf-8"))
        known = sorted((int(size), float(seconds)) for size, seconds in values["batch_seconds"].items())
        sizes, seconds = (np.array(column, float) for column in zip(*known, strict=True))
        every = np.interp(np.arange(sizes[-1] + 1), sizes, seconds)
        return cls(values["name"], every, values["start_seconds"], values["queue_images"], values["measured"])

    @property
    def capacity(self) -> float:
        """Images a second at the largest batch."""
        return (len(self.pass_s) - 1) / float(self.pass_s[-1])


@dataclass(frozen=True)
class Scaling:
    """An autoscaler: images waiting or running for each server, and the least and the largest number of servers."""

    threshold: float
    least: int
    most: int


@dataclass(frozen=True)
class Outcome:
    """The results for the clients and for the owner."""

    p50_s: float
    p99_s: float
    refused: float  # share of the images
    servers: float  # mean number, including those that are starting
    peak: int


def simulate(profile: Profile, scaling: Scaling, rates: Floats, seed: int = 0) -> Outcome:
    """Images arrive at `rates` a second, one entry for each second. Starts with the servers that the first rate needs.

    Raises ValueError unless 1 <= `least` <= `most`.
    """
    if not 1 <= scaling.least <= scaling.most:
        raise ValueError(f"the number of servers cannot lie between {scaling.least} and {scaling.most}")
    needed = int(np.ceil(rates[0] / profile.capacity / 0.7))
    first = min(max(needed, scaling.least), scaling.most)
    rng = np.random.default_rng(seed)
    arrivals = np.sort(np.concatenate([i + rng.random(n) for i, n in enumerate(rng.poisson(rates))]))
    bounds = np.array([scaling.threshold, scaling.least, scaling.most, first], float)
    counts, refused, paid, peak = _run(
        arrivals, float(len(rates)), profile.pass_s, profile.start_s, profile.queue, bounds
    )
    return Outcome(
        _quantile(counts, 0.5), _quantile(counts, 0.99), refused / max(1, len(arrivals)), paid / len(rates), int(peak)
    )


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    if not counts.sum():
        return float("nan")
    bin_ = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(10 ** (6 * (bin_ + 1) / BINS - 3))


@njit(cache=True)
def _serve(s: int, now: float, state: Any, waiting: Any, pass_s: Any, counts: Any) -> None:
    """Run every batch of server `s` that starts before `now`. state[s]: head, length, free at."""
    largest, room = len(pass_s) - 1, waiting.shape[1]
    while state[s, 1] > 0:
        head, length = int(state[s, 0]), int(state[s, 1])
        start = max(state[s, 2], waiting[s, head])
        if start >= now:
            return
        size = 0
        while size < min(length, largest) and waiting[s, (head + size) % room] <= start:
            size += 1
        done = start + pass_s[size]
        for i in range(size):
            latency = done - waiting[s, (head + i) % room]
            place = int((np.log10(max(latency, 1e-3)) + 3) / 6 * BINS)
            counts[min(place, BINS - 1)] += 1
        state[s, 0], state[s, 1], state[s, 2], state[s, 3] = (head + size) % room, length - size, done, size


@njit(cache=True)
def _load(s: int, now: float, state: Any) -> Any:
    """Images of server `s` that wait or run."""
    return state[s, 1] + (state[s, 3] if state[s, 2] > now else 0.0)


@njit(cache=True)
def _run(arrivals: Any, end: float, pass_s: Any, start_s: float, room: int, bounds: Any) -> Any:
    threshold, least, most, first = bounds[0], int(bounds[1]), int(bounds[2]), int(bounds[3])
    np.random.seed(0)  # numba's own generator
    state = np.zeros((most, 4))
    ready = np.full(most, np.inf)  # when a server begins to take images; they are numbered in the order of their start
    ready[:first] = 0.0
    waiting = np.zeros((most, room))
    counts = np.zeros(BINS, np.int64)
    ordered, refused, paid, peak = first, 0, 0.0, first
    second, low_since, removed = 1.0, 0.0, -REMOVE_EVERY_S
    samples = np.zeros(MEAN_OVER_S)
    for now in arrivals:
        while second <= now:
            at = int(second)
            samples[at % MEAN_OVER_S] = 0.0
            for s in range(ordered):
                _serve(s, second, state, waiting, pass_s, counts)
                samples[at % MEAN_OVER_S] += _load(s, second, state)
            paid += ordered
            second += 1.0
            if at % POLL_S:
                continue
            total = samples.sum() / min(at, MEAN_OVER_S)
            wanted = min(max(int(np.ceil(total / threshold)), least), most, 2 * ordered)
            near = abs(total / (threshold * ordered) - 1) <= TOLERANCE
            if wanted >= ordered or near:
                low_since = second
            if wanted > ordered and not near:
                ready[ordered:wanted] = second + start_s
                ordered = wanted
            elif second - low_since >= SETTLE_S and second - removed >= REMOVE_EVERY_S:
                ordered -= 1
                _serve(ordered, np.inf, state, waiting, pass_s, counts)  # drains: takes no more, finishes what it has
                ready[ordered], removed = np.inf, second
            peak = max(peak, ordered)
        up = ordered
        while up > 1 and ready[up - 1] > now:
            up -= 1
        s, other = np.random.randint(up), np.random.randint(up)
        for one in (s, other):
            _serve(one, now, state, waiting, pass_s, counts)
        if _load(other, now, state) < _load(s, now, state):
            s = other
        if _load(s, now, state) >= room:
            refused += 1
            continue
        length = int(state[s, 1])
        waiting[s, (int(state[s, 0]) + length) % room] = now
        state[s, 1] = length + 1
    for s in range(ordered):
        _serve(s, np.inf, state, waiting, pass_s, counts)
    paid += ordered * (end - (second - 1.0))
    return counts, refused, paid, peak


def steady(rate: float, seconds: int = 3600) -> Floats:
    """A constant load."""
    return np.full(seconds, rate)


def jump(rate: float, factor: float = 3, seconds: int = 3600) -> Floats:
    """`factor` times the load from a third to two thirds of the time."""
    rates = steady(rate, seconds)
    rates[seconds // 3 : 2 * seconds // 3] *= factor
    return rates


def by_load(profile: Profile, scaling: Scaling, loads: Iterable[float], images: int) -> list[Row]:
    """Simulate steady loads, each for the time in which about `images` images arrive, 10 to 60 minutes."""
    rows = []
    for load in loads:
        seconds = int(min(3600, max(600, images / load)))
        most = max(scaling.most, int(np.ceil(2 * load / profile.capacity)))
        outcome = simulate(profile, replace(scaling, most=most), steady(load, seconds))
        rows.append({"images_per_s": load} | vars(outcome))
    return rows


def by_threshold(profile: Profile, scaling: Scaling, thresholds: Sequence[float], rates: Floats) -> list[Row]:
    """Simulate the same load with different thresholds."""
    most = max(scaling.most, int(np.ceil(2 * rates.max() / profile.capacity)))
    outcomes = [(t, simulate(profile, replace(scaling, threshold=t, most=most), rates)) for t in thresholds]
    return [{"threshold": t} | vars(outcome) for t, outcome in outcomes]


def by_delay(profile: Profile, scaling: Scaling, delays: Sequence[float], rate: float) -> list[Row]:
    """Simulate a jump of the load with different start-up times."""
    most = max(scaling.most, int(np.ceil(6 * rate / profile.capacity)))
    outcomes = [(s, simulate(replace(profile, start_s=s), replace(scaling, most=most), jump(rate))) for s in delays]
    return [{"seconds_to_start": s} | vars(outcome) for s, outcome in outcomes]


def plot(path: Path, title: str, loads: list[Row], calm: list[Row], sudden: list[Row]) -> None:
    """Three pictures side by side: steady loads; an hour under different thresholds; a jump under the same."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "the same figures, the same picture", "svg.fonttype": "none"}
    figure = Figure(figsize=(12, 4), layout="constrained")
    first, *others = figure.subplots(1, 3)
    rates = [row["images_per_s"] for row in loads]
    first.loglog(rates, [1000 * row["p99_s"] for row in loads], "o-", label="p99, ms")
    first.loglog(rates, [row["servers"] for row in loads], "s--", label="mean servers")
    first.set(title="Steady load, autoscaled", xlabel="images/s")
    times = [1000 * row["p99_s"] for row in (*calm, *sudden)]
    for axes, rows, name in zip(
        others, (calm, sudden), ("An hour of one load", "Three times it, at once"), strict=True
    ):
        thresholds = [row["threshold"] for row in rows]
        axes.semilogx(thresholds, [1000 * row["p99_s"] for row in rows], "o-", base=2)
        axes.set(
            title=name,
            xlabel="threshold: images for each server",
            ylabel="p99, ms",
            yscale="log",
            ylim=(min(times) / 2, 2 * max(times)),
        )
        beside = axes.twinx()
        beside.plot(thresholds, [row["servers"] for row in rows], "s--", color="tab:orange")
        beside.set(ylabel="mean servers", ylim=0)
    first.legend()
    for axes in (first, *others):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})


def table(rows: list[Row]) -> str:
    """The results as Markdown."""
    first = next(iter(rows[0]))
    lines = [
        f"| {first.replace('_per_', '/').replace('_', ' ')} | p50 | p99 | refused | mean servers | most |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times = f"{1000 * row['p50_s']:.0f} ms | {1000 * row['p99_s']:.0f} ms"
        lines.append(f"| {row[first]:,g} | {times} | {row['refused']:.2%} | {row['servers']:.1f} | {row['peak']:,} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print three tables, write them as JSON and as a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True, help="JSON: what was measured of a server")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON and the picture")
    parser.add_argument("--threshold", type=float, help="images for each server (default: half the largest batch)")
    parser.add_argument("--rate", type=float, default=100, help="images a second where thresholds are compared")
    parser.add_argument("--pod-seconds", type=float, default=10, help="from the decision to the process's start")
    parser.add_argument("--images", type=float, default=3e7, help="images to simulate at the highest loads")
    args = parser.parse_args()
    profile = Profile.read(args.profile)
    profile = replace(profile, start_s=profile.start_s + args.pod_seconds)
    scaling = Scaling(args.threshold or (len(profile.pass_s) - 1) / 2, 2, 20)
    loads = by_load(profile, scaling, [1, 10, 100, 1000, 10_000, 100_000], args.images)
    calm, sudden = (by_threshold(profile, scaling, THRESHOLDS, shape(args.rate)) for shape in (steady, jump))
    delays = by_delay(profile, scaling, [0, profile.start_s, 60, 180, 600], args.rate)
    print("\n\n".join(map(table, (loads, calm, sudden, delays))))
    result = {"profile": profile.name, "measured": profile.source, "start_seconds": profile.start_s}
    result |= {
        "threshold": scaling.threshold,
        "rate": args.rate,
        "by_load": loads,
        "calm": calm,
        "jump": sudden,
        "by_delay": delays,
    }
    (args.out / f"{args.profile.stem}.result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    title = f"Simulated: {profile.name}, {profile.capacity:.0f} images/s a server, {profile.start_s:.0f} s to start"
    plot(args.out / f"{args.profile.stem}.svg", title, loads, calm, sudden)


if __name__ == "__main__":
    main()
