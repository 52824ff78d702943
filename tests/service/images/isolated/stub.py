"""A decoder process that does what the name of the format says, instead of decoding: ends, hangs, or answers.

With `once` it creates the file that the data names and ends, unless that file exists.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from service import ipc
from service.images.isolated import worker
from service.images.isolated.messages import Decode, Decoded


def main(descriptor: int) -> None:
    """Answer requests until one ends this process."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as stream:
        while (request := ipc.read(stream, Decode)) is not None:
            _obey(request.name, request.data)
            pixels = bytes([os.getpid() % 256]) * (3 * request.recipe.size**2)
            connection.sendall(ipc.pack(Decoded(pixels, 0.0, b"")))


def _obey(name: str, data: bytes) -> None:
    if name == "once" and not (marker := Path(data.decode())).exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
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
