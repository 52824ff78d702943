"""When the device process cannot restart, or computes wrong results, the server logs the reason and ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.faults import DOWN, IMAGE_S, NAN_CANARY, STICKY, STICKY_ONCE, WRONG_CANARY, plain
from tests.e2e.load import Load, endless_upload
from tests.e2e.server import Server, serving
from tests.tiny import photo

Moment = tuple[float, httpx.Response]


async def timed(request: Coroutine[Any, Any, httpx.Response]) -> Moment:
    """The answer and the time when it arrived."""
    answer = await request
    return time.monotonic(), answer


async def first_unready(client: httpx.AsyncClient) -> float:
    """The time when /readyz first answered 503."""
    while (await client.get("/readyz")).status_code == 200:
        await asyncio.sleep(0.02)
    return time.monotonic()


async def end_of_the_device(server: Server, down: Path) -> tuple[float, list[Moment]]:
    """Requests running, waiting and arriving; the device process dies and cannot start again."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        posts = [client.post("/v1/classify", content=photo(seed)) for seed in range(30)]
        moments = [asyncio.create_task(timed(request)) for request in (*posts, endless_upload(server.url))]
        await asyncio.sleep(0.5)
        _write(down, "cpu")
        server.signal_device(signal.SIGKILL)
        unready = await first_unready(client)
        return unready, await asyncio.gather(*moments)


pytestmark = pytest.mark.slow


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_all_who_wait_get_503_when_the_device_cannot_come_back(tmp_path: Path, tiny: Path) -> None:
    """The server is first not ready, then answers 503 to all requests, and ends with status 1."""
    down = tmp_path / "down"
    with serving(
        tmp_path, faults={DOWN: down, IMAGE_S: 0.1}, model=tiny, max_restarts=2, body_timeout_ms=120_000
    ) as server:
        unready, moments = asyncio.run(end_of_the_device(server, down))
        statuses = [answer.status_code for _, answer in moments]
        refused = [(when, answer) for when, answer in moments if answer.status_code != 200]

        assert {200, 503} >= set(statuses)  # the number that ran before depends on the machine
        assert 503 == statuses[-1]
        assert {"not_ready"} == {answer.json()["code"] for _, answer in refused}
        assert unready < min(when for when, _ in refused)
        assert 1 == server.exit_status()
        assert "2 restarts in a row failed" in server.log  # clients do not get the reason
        assert "ended with status 3" in server.log


def test_a_device_that_comes_back_wrong_never_serves(tmp_path: Path, tiny: Path) -> None:
    """A device with a wrong answer to the canary is restarted until the server ends, and never serves."""
    wrong = tmp_path / "wrong"
    with (
        serving(tmp_path, faults={WRONG_CANARY: wrong}, model=tiny, max_restarts=1) as server,
        server.client() as client,
    ):
        expected = client.post("/v1/embed", content=photo()).json()["results"]
        wrong.touch()
        server.signal_device(signal.SIGKILL)
        answer = client.post("/v1/embed", content=photo())

        assert 503 == answer.status_code, (answer.json(), expected)
        assert 1 == server.exit_status()
        assert 1 == server.log.count("is up after")
        reasons = [line for line in server.log.splitlines() if "the result of the canary image differs by" in line]
        assert 3 == len(reasons)  # a restart, giving up, and the last line
        assert "ended: " in reasons[-1]


def test_a_device_that_recovers_answers_as_before(tmp_path: Path, tiny: Path) -> None:
    """A restarted device serves again only after its answer to the canary is right."""
    wrong = tmp_path / "wrong"
    with serving(tmp_path, faults={WRONG_CANARY: wrong}, model=tiny) as server, server.client() as client:
        expected = client.post("/v1/embed", content=photo()).json()["results"]
        wrong.touch()
        server.signal_device(signal.SIGKILL)
        server.wait_for(lambda: "the result of the canary image differs by" in server.log)
        assert 503 == client.get("/readyz").status_code
        wrong.unlink()

        assert expected == client.post("/v1/embed", content=photo()).json()["results"]


def test_a_canary_that_is_not_finite_ends_the_first_start(tmp_path: Path, tiny: Path) -> None:
    """Without a finite answer to the canary the server ends with status 1; the last line of its log is the reason."""
    broken = tmp_path / "broken"
    broken.touch()
    server = Server(tmp_path / "server.log", faults={NAN_CANARY: broken}, model=tiny)

    assert 1 == server.exit_status()
    assert "ended: " in server.log.splitlines()[-1]
    assert "the result of the canary image is not finite" in server.log.splitlines()[-1]
    assert "is up after" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("once", [True, False])
def test_a_sticky_device_error_costs_the_process_not_the_requests(tmp_path: Path, tiny: Path, once: bool) -> None:
    """A sticky device error ends the process; only an image that causes it again, alone, gets a 500."""

    async def scenario(server: Server) -> httpx.Response:
        async with Load(server.url) as load, httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            await asyncio.sleep(0.3)
            answer = await client.post("/v1/classify", content=plain(STICKY))
        assert load.ledger.clean, load.ledger.complaints
        return answer

    faults = {STICKY_ONCE: tmp_path / "once"} if once else {}
    with serving(tmp_path, faults=faults, model=tiny) as server:
        answer = asyncio.run(scenario(server))
        (device,) = server.devices()

        assert (200 if once else 500) == answer.status_code
        assert device["up"]
        assert "the device process ended with status 70" == device["last_reason"]
        assert "an illegal memory access" in server.log
