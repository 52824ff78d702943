"""Several device processes share one queue: work that one cannot finish runs on another."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.faults import DOWN, IMAGE_S
from tests.e2e.load import Load
from tests.e2e.server import Server, serving
from tests.tiny import photo

TWO = {"device": "cuda:0,cuda:1"}  # the faulty device process computes on the CPU, whatever it is called


def serving_two(directory: Path, tiny: Path, ready: str, **settings: Any) -> Any:
    """Two devices that can be kept from starting again."""
    faults = {DOWN: directory / "down", IMAGE_S: 0.02}
    return serving(directory, faults=faults, model=tiny, ready_devices=ready, **TWO, **settings)


def keep_down(server: Server, *names: str) -> None:
    """Keep these devices from starting."""
    (server.log_file.parent / "down").write_text("\n".join(names))


async def until(server: Server, up: int) -> list[dict[str, Any]]:
    """Wait until this number of devices is up."""
    async with asyncio.timeout(180):
        while sum(device["up"] for device in server.devices()) != up:
            await asyncio.sleep(0.05)
    return server.devices()


@pytest.mark.parametrize(("ready", "status"), [pytest.param("all", 503, marks=pytest.mark.slow), ("any", 200)])
def test_one_device_serves_while_the_other_is_dead(tmp_path: Path, tiny: Path, ready: str, status: int) -> None:
    """The work of a dead device process runs on the other one, and /readyz follows VIM_READY_DEVICES."""

    async def scenario(server: Server) -> None:
        async with Load(server.url, clients=16) as load:
            await asyncio.sleep(0.5)
            keep_down(server, "cuda:0", "cuda:1")  # no killed device starts again
            os.kill(server.children()[0], signal.SIGKILL)
            await until(server, up=1)
            assert status == server.status_of("/readyz")
            assert 200 == server.status_of("/livez")
            answered = load.ledger.good
            await asyncio.sleep(1)
            assert load.ledger.good > answered
            keep_down(server)
            devices = await until(server, up=2)
        assert load.ledger.clean, load.ledger.complaints
        assert 1 == sum(device["restarts"] > 0 for device in devices)
        assert 200 == server.status_of("/readyz")

    with serving_two(tmp_path, tiny, ready, max_restarts=20) as server:
        asyncio.run(scenario(server))


def test_both_devices_die_at_once_and_nothing_is_lost(tmp_path: Path, tiny: Path) -> None:
    """When both devices die, the server is not ready, and after the restart all waiting work is answered."""

    async def scenario(server: Server) -> None:
        async with Load(server.url, clients=16) as load:
            await asyncio.sleep(0.5)
            for pid in server.children():
                os.kill(pid, signal.SIGKILL)
            await until(server, up=0)
            assert 503 == server.status_of("/readyz")
            await until(server, up=2)
        assert load.ledger.clean, load.ledger.complaints
        assert [1, 1] == [device["restarts"] for device in server.devices()]

    with serving_two(tmp_path, tiny, "any") as server:
        asyncio.run(scenario(server))


def test_if_any_will_do_the_service_outlives_a_device(tmp_path: Path, tiny: Path) -> None:
    """With VIM_READY_DEVICES=any the service ends only when the last device cannot be restarted."""
    with serving_two(tmp_path, tiny, "any", max_restarts=0) as server, server.client() as client:
        first, second = server.children()
        os.kill(first, signal.SIGKILL)
        asyncio.run(until(server, up=1))
        assert 200 == client.post("/v1/classify", content=photo()).status_code
        assert 200 == client.get("/readyz").status_code
        assert 200 == client.get("/livez").status_code
        assert "the service goes on without it" in server.log

        os.kill(second, signal.SIGKILL)
        assert 1 == server.exit_status()


def test_if_all_are_wanted_one_that_cannot_come_back_ends_the_service(tmp_path: Path, tiny: Path) -> None:
    """With VIM_READY_DEVICES=all a device that cannot restart ends the service; other work gets 503 at once."""

    async def scenario(server: Server) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            requests = [asyncio.create_task(client.post("/v1/classify", content=photo(n))) for n in range(64)]
            await asyncio.sleep(0.3)
            os.kill(server.children()[0], signal.SIGKILL)
            return await asyncio.gather(*requests)

    with serving_two(tmp_path, tiny, "all", max_restarts=0) as server:
        start = time.monotonic()
        answers = asyncio.run(scenario(server))

        assert {200, 503} >= {answer.status_code for answer in answers}
        assert time.monotonic() - start < 20  # the drain time is 25 s
        assert 1 == server.exit_status()
