"""The runs: every server is started, checked and paused; then each scenario runs on one server after the other."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.photographs import photograph
from bench.serve import environments, probe, summary, weights
from bench.serve.load import Load
from bench.serve.peers import OURS, OWN, PEERS
from bench.serve.processes import Server, free_port
from bench.serve.record import Record
from bench.serve.scenarios import SATURATION, SIDES, SMALL, Regime, Scenario, load_of
from bench.serve.served import Order
from bench.serve.summary import Run
from service.system import cpus

READY_S = 120.0
SETTLE_S = 20.0  # time limit for the backlog of the previous run


class OutOfTime(Exception):  # noqa: N818 - an event
    """The time is up and runs are missing."""


@dataclass(frozen=True)
class Plan:
    """What to run, and in which folders."""

    peers: tuple[str, ...]
    scenarios: frozenset[str]
    rounds: int
    deadline: float
    device: str
    cache: Path
    shorter: float = 1.0  # durations are divided by it


class Field:
    """The servers of one regime."""

    def __init__(self, plan: Plan, regime: Regime, record: Record) -> None:
        self.servers: dict[str, Server] = {}
        self._hurt: set[str] = set()  # a worker was killed: restarted before the next run
        self.corpus = corpus(plan.cache, {SMALL} | {size for s in regime.scenarios for size in s.sizes})
        self._plan, self._regime, self._record = plan, regime, record

    def start(self, names: Sequence[str]) -> None:
        """Start all servers, and record those whose answers differ from ours."""
        for name in names:
            self._try(name, self._start)
        ours = self._answer(OURS) if OURS in self.servers else None
        for name in self.servers:
            theirs = self._answer(name)
            if ours is not None and not probe.agree(ours, theirs):
                self._record.disagrees(f"{self._regime.name}: {name}")
            self._record.note("memory_mb", f"{self._regime.name}: {name}", round(self.servers[name].memory_mb()))
            self.servers[name].pause()

    def _try(self, name: str, begin: Callable[[str], None]) -> None:
        """Start one server. If it does not run, the report names it and the others continue."""
        try:
            begin(name)
        except (LookupError, OSError, subprocess.SubprocessError) as error:
            server = self.servers.pop(name, None)
            if server is not None:
                server.close()
            self._record.note("missing", f"{self._regime.name}: {name}", str(error)[-500:])

    def _start(self, name: str) -> None:
        peer, regime = PEERS[name], self._regime
        order = Order(
            source=weights.source(regime.model, self._plan.cache),
            standin=regime.model == weights.STANDIN,
            device=self._plan.device,
            decoder=regime.decoder,
            max_batch=regime.max_batch,
            port=free_port(),
            cpus=cpus.available_cpus(),
        )
        python = environments.interpreter(name, peer.pins, self._plan.cache)
        self._record.note("versions", name, environments.versions(python, peer.pins))
        self.servers[name] = Server(peer, order, self._plan.cache)
        self._await(name, READY_S)

    def _await(self, name: str, seconds: float) -> None:
        """Wait until the server answers: it is ready, or has finished requests whose clients have left."""
        deadline = time.monotonic() + seconds
        while self.servers[name].alive and time.monotonic() < deadline:
            with contextlib.suppress(LookupError):
                self._answer(name)
                return
            time.sleep(0.2)
        raise LookupError(f"{name} does not answer:\n{self.servers[name].log[-3000:]}")

    def _answer(self, name: str) -> object:
        server = self.servers[name]
        one = Load(
            port=server.order.port,
            path=server.peer.paths["classify"],
            corpus=str(self.corpus),
            sizes={SMALL: 1.0},
            seconds=5,
            clients=1,
            most=1,
            form=server.peer.form,
            warm_s=0,
            patience_s=5,
        )
        body = server.send(one).body
        if not body:
            raise LookupError("no answer")
        return json.loads(body)

    def run(self, name: str, scenario: Scenario, rate: float, number: int) -> Run | None:
        """Run a scenario on one server. A server that ended in the last run is restarted; None if that fails."""
        self._wake(name)
        if (server := self.servers.get(name)) is None:
            return None
        load = load_of(scenario, server.peer, server.order.port, str(self.corpus), rate, seed=number)
        run = self._measured(server, scenario, load, number)
        if scenario.kill_at_s:
            self._hurt.add(name)
        server.pause()
        return run

    def _wake(self, name: str) -> None:
        if name in self._hurt:
            self._try(name, self._restart)
        elif name in self.servers:
            self.servers[name].resume()
            try:
                self._await(name, SETTLE_S)
            except LookupError:
                self._try(name, self._restart)

    def _measured(self, server: Server, scenario: Scenario, load: Load, number: int) -> Run:
        before = server.cpu_s()
        killer = threading.Timer(load.warm_s + scenario.kill_at_s, server.kill_worker)
        if scenario.kill_at_s:
            killer.start()
        records = server.send(load)
        killer.cancel()
        found = summary.figures(records, seconds=load.seconds, slo_s=self._regime.slo_s, images=load.images)
        images = load.images * sum(status == summary.GOOD for status in records.status)
        spent = None if scenario.kill_at_s else server.cpu_s() - before
        return Run(
            regime=self._regime.name,
            scenario=scenario.name,
            peer=server.peer.name,
            round=number,
            cpu_ms=round(1000 * spent / images, 3) if images and spent is not None else None,
            sender_cpu_ms=round(1000 * records.cpu_s / images, 3) if images else None,
            **found,
        )

    def _restart(self, name: str) -> None:
        self._hurt.discard(name)
        self.servers.pop(name).close()
        self._start(name)

    def close(self) -> None:
        """End all servers."""
        for server in self.servers.values():
            server.close()


def run_all(plan: Plan, regimes: Sequence[Regime], record: Record) -> None:
    """Make all runs that are missing. Raises OutOfTime."""
    for regime in regimes:
        names = [name for name in regime.peers if name in plan.peers]
        todo = [
            (number, scenario, name)
            for number in range(1, plan.rounds + 1)
            for scenario in regime.chosen(plan.scenarios)
            for name in rotated(names, number)
            if not record.has(regime.name, scenario.name, name, number)
        ]
        if todo:
            _run(plan, regime, record, todo)


def _run(plan: Plan, regime: Regime, record: Record, todo: list[tuple[int, Scenario, str]]) -> None:
    field = Field(plan, regime, record)
    with contextlib.closing(field):
        wanted = {name for _, _, name in todo}
        field.start([name for name in regime.peers if name in wanted])
        for number, scenario, name in todo:
            if time.monotonic() > plan.deadline:
                raise OutOfTime
            brief = replace(
                scenario, seconds=scenario.seconds / plan.shorter, kill_at_s=scenario.kill_at_s / plan.shorter
            )
            run = field.run(name, brief, brief.share * capacity(record.runs, regime.name), number)
            if run is not None:
                record.add(run)
                _say(run)


def capacity(runs: Sequence[Run], regime: str) -> float:
    """Images a second of the best other server at saturation; of ours if there is no other."""
    found = summary.by_key(run for run in runs if run.regime == regime and run.scenario == SATURATION)
    rates = {key[2]: summary.median(group, "images_per_s") or 0.0 for key, group in found.items()}
    others = [rate for name, rate in rates.items() if name not in OWN]
    return max(others or rates.values(), default=1.0)


def corpus(cache: Path, sizes: Iterable[str]) -> Path:
    """Photographs of these sizes, made once."""
    for size in sizes:
        side, quality, count = SIDES[size]
        folder = cache / "corpus" / size
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            if not (path := folder / f"{seed}.jpg").is_file():
                path.write_bytes(photograph(seed, side, quality))
    return cache / "corpus"


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names, rotated by the round, so that no server is always the first."""
    first = (number - 1) % max(1, len(names))
    return [*names[first:], *names[:first]]


def _say(run: Run) -> None:
    what = f"{run.regime}, {run.scenario}, round {run.round}: {run.peer}"
    losses = f", {run.refused} refused, {run.lost} lost" if run.refused or run.lost else ""
    print(
        f"{what}: {run.images_per_s}/s, p99 {run.p99_ms} ms, {run.cpu_ms} ms CPU{losses}", file=sys.stderr, flush=True
    )
