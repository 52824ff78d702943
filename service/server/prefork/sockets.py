"""One port for several processes: found free, kept, and listened to by each with a socket of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Address = tuple[int, Any]  # family, and what `bind` takes


@contextmanager
def kept(host: str, port: int) -> Iterator[tuple[Address, ...]]:
    """The addresses, which stay ours for so long. Raises OSError where somebody listens already."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as sockets:
        addresses: list[Address] = []
        for family, *_, address in dict.fromkeys(found):
            wanted = (address[0], port or (addresses[0][1][1] if addresses else 0), *address[2:])
            with bound(family, wanted, shared=False):
                pass  # another service that shares its port would share it with us, unnoticed
            keeper = sockets.enter_context(bound(family, wanted, shared=True))
            addresses.append((family, keeper.getsockname()))
        yield tuple(addresses)


def bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    """A socket at this address. The kernel shares out connections among all that listen there and are `shared`."""
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
