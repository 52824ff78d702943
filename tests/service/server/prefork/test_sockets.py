"""One port for several listeners of this service, and for no other service."""

from __future__ import annotations

import socket

import pytest

from service.server.prefork import sockets


def test_several_listen_on_a_free_port_that_is_kept() -> None:
    """Several sockets can listen on a reserved port, also on the free port that port 0 selects."""
    with sockets.kept("127.0.0.1", 0) as addresses:
        [(family, address)] = addresses
        listeners = [sockets.bound(family, address, shared=True) for _ in range(2)]
        for one in listeners:
            one.listen()

        with socket.create_connection(address[:2], timeout=5):
            pass
        assert address[1] > 0
        for one in listeners:
            one.close()


@pytest.mark.parametrize("shared", [True, False])
def test_a_port_that_somebody_listens_on_is_refused(shared: bool) -> None:
    """A port on which another service listens is refused, even if that service shares its port."""
    with sockets.bound(socket.AF_INET, ("127.0.0.1", 0), shared=shared) as other:
        other.listen()

        with pytest.raises(OSError, match="already in use"), sockets.kept("127.0.0.1", other.getsockname()[1]):
            pass


def test_a_name_may_have_several_addresses() -> None:
    """All addresses of a host name get the same port."""
    with sockets.kept("localhost", 0) as addresses:
        assert 1 == len({address[1] for _, address in addresses})
