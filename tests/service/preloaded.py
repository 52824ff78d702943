"""Device processes that start quickly: forks of a process that has imported torch.

A device process needs two seconds of processor time to start, nearly all of it for the import. The tests here start
dozens of applications and are about something else; those of `tests/e2e` start every process as the service does.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from service.devices import process
from service.system.programs import python_command

MODULE = "service.devices.worker"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ENVIRONMENT_BYTES = 1 << 20
# Variables that glibc, the interpreter or an imported library reads only once.
_READ_ONCE = ("OMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMBA_", "MALLOC_", "TORCH", "PYTHON")


class Forked:
    """A process that this one has not started but adopted; the part of `subprocess.Popen` that `service` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self) -> None:
        """Kill it if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Preloaded:
    """The process that has imported torch, started for the first device process that it can fork."""

    def __init__(self) -> None:
        self._environment: dict[str, str] = {}
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], **options: Any
    ) -> Forked | subprocess.Popen[bytes]:
        """In place of `subprocess.Popen`: a fork if it is the same as a new process, else a new process."""
        if [*command] != python_command(MODULE, *pass_fds) or not self._fits(env):
            return subprocess.Popen(command, env=env, pass_fds=pass_fds, **options)
        if self._connection is None:
            self._start(env)
        assert self._connection is not None
        _adopt(True)
        try:
            socket.send_fds(self._connection, [json.dumps(dict(env)).encode()], pass_fds)
            return Forked(int(self._connection.recv(32)))
        finally:
            _adopt(False)

    def _start(self, env: Mapping[str, str]) -> None:
        self._environment = dict(env)
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._connection, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ENVIRONMENT_BYTES)
        with theirs:
            command = python_command(__name__, theirs.fileno())
            options: dict[str, Any] = {"pass_fds": (theirs.fileno(),), "stdin": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, env=env, start_new_session=True, **options)

    def _fits(self, env: Mapping[str, str]) -> bool:
        """Whether a fork would have the right values of the variables that are read only once, and no threads."""
        if self._connection is None:
            return env["OPENBLAS_NUM_THREADS"] == "1"  # the import would start more
        return _read_once(env) == _read_once(self._environment)

    def close(self) -> None:
        """End the process that forks; its forks are children of this process."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.wait()


def _read_once(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_ONCE)}


def _adopt(wanted: bool) -> None:
    """Whether processes below this one become its children when their parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


@contextmanager
def device_processes() -> Iterator[None]:
    """Fork the device processes of this process within the block."""
    preloaded = Preloaded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", SimpleNamespace(Popen=preloaded.popen, DEVNULL=subprocess.DEVNULL))
        try:
            yield
        finally:
            preloaded.close()


def serve(connection: socket.socket) -> int:
    """Fork a device process for each message until the connection is closed; returns the exit status."""
    import model.backends.cpu.encoder
    import model.loading.load  # noqa: F401 - what a device process imports later
    from service.devices import worker

    assert 1 == len(os.listdir("/proc/self/task")), "a fork has no other threads, which the imports have started"
    while True:
        environment, descriptors, _, _ = socket.recv_fds(connection, ENVIRONMENT_BYTES, 2)
        if not descriptors:
            return 0
        if (between := os.fork()) == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)  # so that the tests' process becomes the parent of the device process
            while os.getppid() == parent:
                time.sleep(0.001)
            os.setsid()
            os.environ.clear()
            os.environ.update(json.loads(environment))
            connection.send(str(os.getpid()).encode())
            connection.close()
            status = worker.main(*descriptors)
            atexit._run_exitfuncs()
            os._exit(status)  # the interpreter takes long to free what the imports have made
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
