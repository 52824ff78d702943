"""A decoder process that does what the name of the format says, instead of decoding: ends, hangs, or answers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from service import ipc
from service.images.isolated import worker
from service.images.isolated.messages import Decode, Decoded


def main(descriptor: int) -> None:
    """Answer requests until one ends this process."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as stream:
        while (request := ipc.read(stream, Decode)) is not None:
            _obey(request.name)
            pixels = bytes([os.getpid() % 256]) * (3 * request.recipe.size**2)
            connection.sendall(ipc.pack(Decoded(pixels, 0.0, b"")))


def _obey(name: str) -> None:
    if name == "hang":
        time.sleep(60)
    if name == "spin":
        with worker.limits(1 << 30, cpu_s=0.1):
            while True:
                pass
    if name.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[name])
    if name == "exit":
        sys.exit(3)


if __name__ == "__main__":
    main(int(sys.argv[1]))
