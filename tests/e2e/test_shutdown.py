"""Shutdown: accepted work is answered, work that cannot be finished gets 503, and the exit status is 0."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.faults import HANG, plain
from tests.e2e.load import Load, endless_upload
from tests.e2e.server import Server, serving
from tests.tiny import photo

MORE = pytest.mark.slow  # other values of what another case tests


async def terminate(server: Server, clients: int) -> Load:
    """Send SIGTERM at a random moment; the clients continue until no server listens."""
    async with Load(server.url, clients) as load:
        await asyncio.sleep(random.uniform(0.1, 1.0))
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.exit_status, 60)
    return load


@pytest.mark.parametrize(
    ("delay_ms", "processes"), [(0, 1), (5, 1), pytest.param(700, 1, marks=MORE), pytest.param(5, 2, marks=MORE)]
)
def test_no_accepted_request_is_dropped_by_sigterm(tmp_path: Path, tiny: Path, delay_ms: int, processes: int) -> None:
    """Every request whose header the server has read is answered after SIGTERM; later ones get no connection."""
    with serving(tmp_path, model=tiny, drain_delay_ms=delay_ms, http_workers=processes) as server:
        load = asyncio.run(terminate(server, clients=8))

        assert 0 == server.exit_status()
        assert load.ledger.good > 0
        assert load.ledger.turned_away > 0, "the load ended before the listener did"
        assert not load.ledger.unexpected + load.ledger.wrong, load.ledger.complaints
        assert not load.ledger.broken.keys() & server.requests_seen(), load.ledger.complaints


def test_what_cannot_be_finished_in_time_gets_503(tmp_path: Path, tiny: Path) -> None:
    """Work on the device, in the queue or in upload gets 503 after the drain time, and the exit status is 0."""

    async def scenario(server: Server) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            hanging = asyncio.create_task(client.post("/v1/classify", content=plain(HANG)))
            await asyncio.to_thread(server.wait_for, lambda: server.metric("vim_inflight_batches"))
            posts = [client.post("/v1/classify", content=photo(seed)) for seed in range(2)]
            requests = [hanging, *map(asyncio.create_task, (*posts, endless_upload(server.url)))]
            await asyncio.sleep(0.5)
            server.signal(signal.SIGTERM)
            return await asyncio.gather(*requests)

    with serving(tmp_path, faults={}, model=tiny, drain_timeout_ms=1000, watchdog_ms=50_000) as server:
        answers = asyncio.run(scenario(server))

        assert [(503, "draining")] * 4 == [(one.status_code, one.json().get("code")) for one in answers], [
            one.text for one in answers
        ]
        assert 0 == server.exit_status(timeout=30)  # not after the hang, which takes a minute
        assert "Traceback" not in server.log


def test_sigterm_while_the_device_is_being_replaced_loses_nothing(tmp_path: Path, tiny: Path) -> None:
    """On SIGTERM during a restart of the device, the drain waits for it and no work is lost."""

    async def scenario(server: Server) -> Load:
        async with Load(server.url) as load:
            await asyncio.sleep(0.5)
            server.signal_device(signal.SIGKILL)
            await asyncio.sleep(0.1)
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.exit_status, 60)
        return load

    with serving(tmp_path, model=tiny, drain_timeout_ms=120_000) as server:
        load = asyncio.run(scenario(server))

        assert 0 == server.exit_status()
        assert not load.ledger.unexpected + load.ledger.wrong, load.ledger.complaints
        assert not load.ledger.broken.keys() & server.requests_seen(), load.ledger.complaints


def test_sigterm_while_the_model_is_being_loaded(tmp_path: Path, tiny: Path) -> None:
    """SIGTERM while the model is being loaded ends the server with status 0."""
    server = Server(tmp_path / "server.log", model=tiny)
    assert server.url
    server.signal(signal.SIGTERM)

    assert 0 == server.exit_status()
    assert "Traceback" not in server.log
