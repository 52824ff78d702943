"""The servers of a session: those that `make test-clients` has started, or new ones in this environment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.clients.opened import close_all
from tests.clients.servers import VARIABLE, Servers, started


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    """Close what `opened` has kept."""
    yield
    close_all()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The addresses of the running servers."""
    if given := os.environ.get(VARIABLE):
        yield Servers.from_json(given)
        return
    with started(tmp_path_factory.mktemp("servers")) as own:
        yield own
