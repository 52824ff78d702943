"""Decodes files in separate processes. They are started on demand, and replaced when they end."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import time
from typing import BinaryIO

import numpy as np

from model.preprocessing.recipe import Preprocess
from service import ipc
from service.errors import DeadlineExceeded, ImageTooComplex, NotReady, OutOfMemory, ServiceError, UnsupportedImage
from service.images.formats import unsupported
from service.images.header import Header
from service.images.isolated.messages import Decode, Decoded, FromDecoder, Refused
from service.images.jpeg import Decoded as Picture
from service.system.programs import python_command, python_environment

log = logging.getLogger("vim.decoder")

WORKER = "service.images.isolated.worker"
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}  # glibc reserves 64 MB for each thread otherwise, and address space is limited
EXIT_S = 5.0  # how long to wait for a process that should end


class _Ended(Exception):  # noqa: N818 - an event
    """The process ended with `status`, which is negative for a signal; None: it took longer than allowed."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class DecoderProcesses:
    """Decoder processes, as many as threads decode such files at the same time. Thread-safe.

    `patience_s` limits the wall time of one file. The worker limits its memory and its CPU time.
    """

    def __init__(self, patience_s: float, worker: str = WORKER) -> None:
        self._patience_s = patience_s
        self._worker = worker
        self._idle: list[_Process] = []
        self._closed = False

    def decode(self, data: bytes, name: str, header: Header, recipe: Preprocess) -> Picture:
        """Decode a file and preprocess it. Blocks the thread.

        Raises UnsupportedImage, ImageTooComplex, OutOfMemory, DeadlineExceeded; NotReady if no process can be started.
        """
        request = Decode(data, name, header, recipe)
        try:
            answer = self._ask(request, chances=2)
        except _Ended as ended:
            raise self._explained(name, header, ended.status) from None
        if isinstance(answer, Refused):
            raise _refusal(answer)
        pixels = np.frombuffer(answer.pixels, np.uint8).reshape(recipe.size, recipe.size, 3)
        return Picture(pixels, time.perf_counter() - answer.preprocess_s, answer.profile)

    def close(self) -> None:
        """End the idle processes, and the others when they have answered."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _ask(self, request: Decode, chances: int) -> FromDecoder:
        process = self._take()
        try:
            answer = process.ask(request)
        except _Ended as ended:
            if chances == 1 or ended.status in (None, -signal.SIGXCPU):
                raise
            return self._ask(request, chances - 1)  # something else may have ended it
        self._idle.append(process)
        if self._closed:
            self.close()
        return answer

    def _take(self) -> _Process:
        while self._idle:
            try:
                process = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if process.is_running:
                return process
            process.close()
        try:
            return _Process(self._worker, self._patience_s)
        except OSError as error:
            log.error("no decoder process can be started: %s", error)
            raise NotReady("no decoder process can be started now", retry_after_s=1) from None

    def _explained(self, name: str, header: Header, status: int | None) -> ServiceError:
        size = f"{header.width} x {header.height} pixels"
        if status is None:
            return DeadlineExceeded(f"the {name} image was not decoded within {self._patience_s:g} s")
        log.warning("a decoder process ended (%d) while it decoded a %s image of %s", status, name, size)
        if status == -signal.SIGXCPU:
            return ImageTooComplex(f"the {name} image of {size} takes too long to decode; save it with another program")
        if status == -signal.SIGKILL:  # by the kernel, when memory runs out
            return OutOfMemory(f"the server has no memory for a {name} image of {size} now", retry_after_s=1)
        return unsupported(f"the {name} image is damaged or of an unsupported kind")


class _Process:
    """One process and our end of its socket."""

    def __init__(self, worker: str, patience_s: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    python_command(worker, theirs.fileno()),
                    env=python_environment() | _ONE_HEAP,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a terminal's Ctrl-C goes to the parent only
                )
            except OSError:
                ours.close()
                raise
        ours.settimeout(patience_s)
        self._connection = ours
        self._stream: BinaryIO = ours.makefile("rb")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Decode) -> FromDecoder:
        """Send a request and wait for the answer. Raises _Ended; the process is of no use then."""
        try:
            self._connection.sendall(ipc.pack(request))
            answer: Decoded | Refused | None = ipc.read(self._stream, FromDecoder)
        except TimeoutError:
            self._process.kill()
            self.close()
            raise _Ended(None) from None
        except OSError:  # the process has closed its end
            answer = None
        if answer is None:
            raise _Ended(self.close())
        return answer

    def close(self) -> int:
        """Close the socket, which ends the process; return its exit status."""
        self._stream.close()
        self._connection.close()
        try:
            return self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _refusal(answer: Refused) -> ServiceError:
    if answer.kind == "out_of_memory":
        return OutOfMemory(answer.detail, retry_after_s=1)
    return UnsupportedImage(answer.detail)
