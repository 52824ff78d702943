"""One of several HTTP processes, as a program: `parent` starts it. It knows its parent by a socket, nothing else.

The kernel kills it when its parent dies. What it does is `server`; where its images go is `outpost`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import BinaryIO, cast

from service import log
from service.api.oip.statistics import numbers
from service.devices.messages import HEADER, Begin, unpack
from service.devices.slots import Lease
from service.errors import SettingsError
from service.server.prefork import sockets
from service.server.prefork.remote_pool import Outpost
from service.server.server import serve_part
from service.settings import Settings
from service.telemetry.shared_counters import Tally

PR_SET_PDEATHSIG = 1  # linux/prctl.h
USAGE = 2


def main(socket_descriptor: int, arena_descriptor: int, tally_descriptor: int, parent: int) -> int:
    """Entry point of the process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return 1
    connection = socket.socket(fileno=socket_descriptor)
    with connection.makefile("rb", buffering=0) as stream:
        begin = _begin(cast(BinaryIO, stream))
    settings = Settings.model_validate_json(begin.settings_json)
    log.configure(settings.log_level, process=begin.name)
    slots = settings.share.queue_images
    lease = Lease(arena_descriptor, begin.number * slots, slots * settings.http_workers + 1)
    tally = Tally.mapped(tally_descriptor, settings.http_workers, numbers(settings.queue_images), begin.number)
    outpost = Outpost(begin, lease, slots, settings.http_workers, tally, connection)
    try:
        return serve_part(settings, outpost, [sockets.bound(*one, shared=True) for one in begin.addresses])
    except SettingsError as error:
        print(error, file=sys.stderr)
        return USAGE


def _begin(stream: BinaryIO) -> Begin:
    """Not buffered: what follows is read by the event loop."""
    (length,) = HEADER.unpack(_exactly(stream, HEADER.size))
    begin = unpack(_exactly(stream, length))
    assert isinstance(begin, Begin)
    return begin


def _exactly(stream: BinaryIO, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        if not (part := stream.read(size - len(parts))):
            raise SystemExit(1)  # the parent has ended
        parts += part
    return parts


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:5])))
