"""The servers that are compared, each with its pins, its command and its paths. Their settings are in their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from bench.serve.served import Order

Victim = Callable[[psutil.Process], psutil.Process]
OURS = "this service"
PILLOW = "this service (Pillow)"
ONE = "this service (1 HTTP process)"
MOST_HTTP_PROCESSES = 4
OWN = frozenset({OURS, PILLOW, ONE})  # our variants; only the others are peers


@dataclass(frozen=True)
class Peer:
    """One server. `victim` finds the process that runs the model, for the test that kills it."""

    name: str
    pins: tuple[str, ...]  # packages that pip installs into an environment of its own; empty: the project's environment
    command: Callable[[Order], tuple[str, ...]]  # after the interpreter
    victim: Victim
    environment: Callable[[Order], dict[str, str]] = lambda order: {}
    paths: dict[str, str] = field(default_factory=lambda: {"classify": "/classify", "embed": "/embed"})
    many: str | None = None  # path for many images in one form; None: the client sends them side by side
    form: bool = False  # it takes forms only
    apart: bool = False  # it listens on every interface, so it gets a network of its own
    start_s: float = 90.0

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's service, with any settings."""
        return not self.pins and self.many == "/v1/classify"


def _ours(order: Order) -> tuple[str, ...]:
    return ("-m", "bench.serve.standin_server") if order.standin else ("-m", "service", "serve")


def _advised(order: Order) -> int:
    """The number of HTTP processes that docs/operate/tuning.md advises: one per core if the model does not use them."""
    busy = not order.standin and order.device == "cpu"
    return 1 if busy else min(order.cpus, MOST_HTTP_PROCESSES)


def _vim_settings(decode: str, processes: int | None = None) -> Callable[[Order], dict[str, str]]:
    def settings(order: Order) -> dict[str, str]:
        """The defaults, with the settings of all servers, the largest batch, and the advice of the tuning guide."""
        return {
            "VIM_MODEL": order.source,
            "VIM_PORT": str(order.port),
            "VIM_DEVICE": "cpu" if order.standin else order.device,
            "VIM_MAX_BATCH": str(order.max_batch),
            "VIM_DECODE": decode,
            "VIM_HTTP_WORKERS": str(processes or _advised(order)),
            "VIM_LOG_LEVEL": "warning",
        }

    return settings


def _module(name: str) -> Callable[[Order], tuple[str, ...]]:
    return lambda _: ("-m", f"bench.serve.peers.{name}")


def _bentoml(order: Order) -> tuple[str, ...]:
    where = ("--host", "127.0.0.1", "--port", str(order.port))
    return ("-m", "bentoml", "serve", "bench.serve.peers.bentoml_app:Vim", *where)


def child(*words: str, last: bool = False) -> Victim:
    """The first process under the server (or the last) whose command line or name has all of these words."""

    def find(root: psutil.Process) -> psutil.Process:
        found = [one for one in root.children(recursive=True) if _has(one, words)]
        if not found:
            raise LookupError(f"no process under {root.pid} with {words}")
        return max(found, key=lambda one: one.create_time() if last else -one.create_time())

    return find


def _has(process: psutil.Process, words: tuple[str, ...]) -> bool:
    text = " ".join([process.name(), *process.cmdline()])
    return all(word in text for word in words)


NATIVE = {"classify": "/v1/classify", "embed": "/v1/embed"}
PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, (), _ours, child("worker"), _vim_settings("exact"), NATIVE, "/v1/classify"),
        Peer(PILLOW, (), _ours, child("worker"), _vim_settings("pillow"), NATIVE, "/v1/classify"),
        Peer(ONE, (), _ours, child("worker"), _vim_settings("exact", processes=1), NATIVE, "/v1/classify"),
        Peer("FastAPI", (), _module("fastapi_app"), child("spawn_main"), many="/classify-many"),
        Peer(
            "LitServe",
            ("litserve==0.2.19",),
            _module("litserve_app"),
            child("spawn_main", last=True),
            paths={"classify": "/predict", "embed": "/predict?op=embed"},
        ),
        Peer(
            "mosec",
            ("mosec==0.9.8",),
            _module("mosec_app"),
            child("spawn_main", last=True),
            lambda order: {"MOSEC_PORT": str(order.port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_LOG_LEVEL": "warning"},
        ),
        Peer("BentoML", ("bentoml==1.4.40",), _bentoml, child("_bentoml_impl.worker"), many="/classify", form=True),
        Peer("Ray Serve", ("ray[serve]==2.60.0",), _module("ray_app"), child("ray::", "Vim"), apart=True),
    )
}
