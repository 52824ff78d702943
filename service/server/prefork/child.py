"""The program of one of several HTTP processes. `service.server.prefork.parent` starts it and connects by a socket.

The kernel kills it when its parent ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import BinaryIO, cast

from service import ipc, log
from service.app import ProcessContext
from service.devices.slots import Lease, Slots
from service.errors import SettingsError
from service.server.prefork import counts, sockets
from service.server.prefork.messages import ChildStart, ToChild
from service.server.prefork.remote_registry import RemoteRegistry
from service.server.server import serve_child
from service.settings import Settings
from service.telemetry.multiprocess import MultiprocessDirectory

PR_SET_PDEATHSIG = 1  # linux/prctl.h
USAGE = 2


def main(socket_descriptor: int, slots_descriptor: int, counts_descriptor: int, parent: int) -> int:
    """Entry point of the process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        return 1
    connection = socket.socket(fileno=socket_descriptor)
    with connection.makefile("rb", buffering=0) as stream:  # unbuffered: the event loop reads what follows
        start = ipc.read(cast(BinaryIO, stream), ToChild)
    if not isinstance(start, ChildStart):  # the parent has ended
        return 1
    settings = Settings.model_validate_json(start.settings_json)
    log.configure(settings.log_level, process=start.name)
    shared = counts.mapped(settings, counts_descriptor, start.number)
    lease = Lease(slots_descriptor, start.number, settings.http_workers)
    pool = RemoteRegistry(Slots(settings.queue_images, shared.usage, lease), connection)
    metrics = MultiprocessDirectory(start.metrics, start.name)
    context = ProcessContext(pool, metrics, shared.statistics, start.created)
    try:
        return serve_child(settings, context, pool, [sockets.bound(*one, shared=True) for one in start.addresses])
    except SettingsError as error:
        print(error, file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:5])))
