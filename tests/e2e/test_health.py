"""Health checks while the event loop is blocked."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.faulty_server import STUCK_S
from tests.e2e.load import Load
from tests.e2e.server import Server, serving


def test_a_probe_of_a_stuck_event_loop_fails_by_its_own_time_out(tmp_path: Path, tiny: Path) -> None:
    """A blocked event loop does not answer /livez, so the probe fails by its time-out; afterwards all is answered."""

    async def scenario(server: Server) -> None:
        async with Load(server.url) as load, httpx.AsyncClient(base_url=server.url, timeout=STUCK_S / 4) as probe:
            assert 200 == (await probe.get("/livez", timeout=60)).status_code
            os.kill(server.process.pid, signal.SIGUSR1)
            await asyncio.sleep(0.2)
            with pytest.raises(httpx.ReadTimeout):
                await probe.get("/livez")
        assert load.ledger.clean, load.ledger.complaints
        assert 200 == server.status_of("/livez")

    with serving(tmp_path, faults={}, model=tiny) as server:
        asyncio.run(scenario(server))
