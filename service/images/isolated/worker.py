"""The program of a decoder process: receives files, decodes them with `service.images.pillow`, and answers.

The decoders are large libraries in C and C++ that read untrusted files. Each file has limits that the kernel enforces:
memory, by the size that its header claims, and CPU time. The process ends when the other end of its socket closes.
"""

from __future__ import annotations

import contextlib
import math
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from service import ipc
from service import log as service_log
from service.errors import OutOfMemory, UnsupportedImage
from service.images import pillow
from service.images.isolated.messages import Decode, Decoded, FromDecoder, Refused

SPARE_BYTES = 64 << 20  # added to what the header says: stacks, tables, small images
# CPU time for a file: 20 to 150 ns for each pixel were measured.
LEAST_CPU_S, CPU_S_PER_PIXEL, MOST_CPU_S = 1.0, 250e-9, 10.0


def main(descriptor: int) -> None:
    """Answer requests over the socket until its other end is closed."""
    service_log.configure("warning", process="decoder")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pillow.load_isolated()
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as stream:
        while (request := ipc.read(stream, Decode)) is not None:
            cpu_s = min(LEAST_CPU_S + CPU_S_PER_PIXEL * request.header.pixels, MOST_CPU_S)
            with limits(request.header.memory_bytes + 2 * len(request.data), cpu_s):
                answer = _answer(request)
            connection.sendall(ipc.pack(answer))
            del request, answer


@contextlib.contextmanager
def limits(memory_bytes: int, cpu_s: float) -> Iterator[None]:
    """Let the kernel limit memory and CPU time in the context. SIGXCPU ends the process when the time is used up."""
    with contextlib.suppress(OSError):  # only Linux says how much is used
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES + memory_bytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s), resource.RLIM_INFINITY))
    try:
        yield
    finally:  # the next request may be larger than the memory of this one
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _answer(request: Decode) -> FromDecoder:
    try:
        found = pillow.decode(request.data, request.name, request.header, request.recipe, None)
    except UnsupportedImage as error:
        return Refused("unsupported", error.detail)
    except OutOfMemory as error:
        return Refused("out_of_memory", error.detail)
    return Decoded(found.pixels.tobytes(), time.perf_counter() - found.at, found.profile)


if __name__ == "__main__":
    main(int(sys.argv[1]))
