"""A compared server: start it, wait until it is ready, pause it while others run, measure it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from bench.serve import environments
from bench.serve.load import Load, Records
from bench.serve.peers import Peer
from bench.serve.served import Order
from service.system import cpus

AWAKE_S = 0.1
ROOT = Path(__file__).resolve().parents[2]
_APART = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


class Server:
    """One running peer. Everything it starts is in its session, so that all of it can be paused and ended."""

    def __init__(self, peer: Peer, order: Order, cache: Path) -> None:
        self.peer, self.order = peer, order
        self._log = cache / "logs" / f"{peer.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._python = environments.interpreter(peer.name, peer.pins, cache)
        self._process = self._start(cache)

    def _start(self, cache: Path) -> psutil.Popen:
        compiled = str(environments.DEFAULT_CACHE.parent / "numba")  # the cache folder of this service
        own = {"PYTHONPATH": str(ROOT), "BENTOML_HOME": str(cache / "bentoml"), "NUMBA_CACHE_DIR": compiled}
        environment = _clean() | cpus.thread_environment(self.order.cpus) | cpus.heap_environment()
        if self.peer.is_ours:
            environment = _clean()  # the service sets its threads and heap itself
        environment |= own | self.order.environment() | self.peer.environment(self.order)
        with self._log.open("wb") as log:
            return psutil.Popen(
                [*(_APART if self.peer.apart else ()), str(self._python), *self.peer.command(self.order)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send(self, load: Load) -> Records:
        """Send a load to the server, from another process."""
        command = [*self._network(), sys.executable, "-m", "bench.serve.load"]
        asked = json.dumps(asdict(load))
        done = subprocess.run(command, cwd=ROOT, input=asked, capture_output=True, text=True, check=True, timeout=300)
        return Records(**json.loads(done.stdout))

    def _network(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net"] if self.peer.apart else []

    @property
    def log(self) -> str:
        """The output of the server so far."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether its first process is running."""
        return self._process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """All its processes: its descendants, and processes of its session that are no longer descendants."""
        found = {one.pid: one for one in _children(self._process)}
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if one.pid not in found and os.getsid(one.pid) == self._process.pid:
                    found[one.pid] = one
        return [self._process, *(one for pid, one in found.items() if pid != self._process.pid)]

    def cpu_s(self) -> float:
        """CPU seconds of its processes, including ended processes whose parents have waited for them."""
        return sum(sum(one.cpu_times()[:4]) for one in _living(self.tree()))

    def memory_mb(self) -> float:
        """Its memory in MB; pages that several of its processes share count once."""
        return sum(one.memory_full_info().pss for one in _living(self.tree())) / 1e6

    def kill_worker(self) -> None:
        """SIGKILL for the process that runs the model."""
        self.peer.victim(self._process).kill()

    def pause(self) -> None:
        """Stop its processes, since some servers use CPU time while idle."""
        self._signal(signal.SIGSTOP, self.tree())

    def resume(self) -> None:
        """Continue its processes; the first one last, because it might otherwise consider the others dead."""
        first, *others = self.tree()
        self._signal(signal.SIGCONT, others)
        time.sleep(AWAKE_S)
        self._signal(signal.SIGCONT, [first])

    def close(self) -> None:
        """End the server and all of its processes."""
        tree = self.tree()
        self._signal(signal.SIGCONT, tree)
        self._signal(signal.SIGTERM, tree[:1])
        _, left = psutil.wait_procs(tree, timeout=5)
        self._signal(signal.SIGKILL, left)
        psutil.wait_procs(left, timeout=5)

    @staticmethod
    def _signal(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
        for one in processes:
            with contextlib.suppress(psutil.Error):
                one.send_signal(number)


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("VIM_", "RAY_", "BENTOML_"))}


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _living(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.cpu_times()
            yield one
