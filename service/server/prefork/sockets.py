"""Reserves one port for several processes; each process listens on it with its own socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Address = tuple[int, tuple[Any, ...]]  # family, and what `bind` takes


@contextmanager
def kept(host: str, port: int) -> Iterator[tuple[Address, ...]]:
    """Reserve the addresses of a host and port. Raises OSError if another process listens there already."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as sockets:
        addresses: list[Address] = []
        for family, *_, address in dict.fromkeys(found):
            wanted = (address[0], port or (addresses[0][1][1] if addresses else 0), *address[2:])
            with bound(family, wanted, shared=False):
                pass  # fails if another service listens, also one that allows others to share its port
            keeper = sockets.enter_context(bound(family, wanted, shared=True))
            addresses.append((family, keeper.getsockname()))
        yield tuple(addresses)


def bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    """A socket bound to this address. The kernel distributes connections among all `shared` sockets that listen."""
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
