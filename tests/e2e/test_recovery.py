"""Device processes die, hang and run out of memory under load; no accepted request is lost. Longer: `make chaos`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.faults import BATCH_S, HANG, NOT_FINITE, RAISE, ROOM, SEGFAULT, plain
from tests.e2e.load import Load
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server for images that harm its device process."""
    with serving(tmp_path_factory.mktemp("faulty"), faults={}, model=tiny) as server:
        yield server


async def wait_for_restarts(server: Server, count: int) -> None:
    """Wait until the device process has been replaced `count` times and serves."""
    async with asyncio.timeout(180):
        while (device := server.devices()[0])["restarts"] < count or not device["up"]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "the device process was killed by signal 9"), (signal.SIGSTOP, "it hangs: a batch of")],
)
def test_nothing_is_lost_when_the_device_process_dies_or_hangs(
    tmp_path: Path, tiny: Path, number: signal.Signals, reason: str
) -> None:
    """When the device process dies or hangs, answers are late but not lost; /livez stays 200 and /readyz shows 503."""

    async def scenario(server: Server) -> None:
        async with Load(server.url) as load, httpx.AsyncClient(base_url=server.url) as probe:
            await asyncio.sleep(0.5)
            os.kill(server.device_pid(), number)
            unready = False
            async with asyncio.timeout(180):
                while server.devices()[0]["restarts"] < 1 or not unready:
                    assert 200 == (await probe.get("/livez")).status_code
                    unready |= (await probe.get("/readyz")).status_code == 503
                    await asyncio.sleep(0.05)
            await wait_for_restarts(server, 1)
            await asyncio.sleep(0.5)
            assert 200 == (await probe.get("/readyz")).status_code

        assert load.ledger.clean, load.ledger.complaints
        assert load.ledger.statuses[200] > 8

    with serving(tmp_path, model=tiny, watchdog_ms=1500) as server:
        asyncio.run(scenario(server))
        (device,) = server.devices()

        assert f"cpu is lost: {reason}" in server.log
        assert f"cpu is lost: {device['last_reason']}; restart {device['restarts']}" in server.log
        assert device["restarts"] == server.metric('vim_device_lost_total{device="cpu",model="tiny"}')


@pytest.mark.parametrize(
    ("colour", "code"),
    [
        (SEGFAULT, "inference_failed"),
        pytest.param(RAISE, "inference_failed", marks=pytest.mark.slow),
        (NOT_FINITE, "non_finite_output"),
    ],
)
def test_one_poison_image_fails_alone(faulty: Server, colour: tuple[int, int, int], code: str) -> None:
    """An image that fails alone gets its own 500, and all others of its batch are answered."""

    async def scenario() -> httpx.Response:
        async with Load(faulty.url) as load, httpx.AsyncClient(base_url=faulty.url, timeout=120) as client:
            await asyncio.sleep(0.3)
            answer = await client.post("/v1/classify", content=plain(colour))
            await asyncio.sleep(0.3)

        assert load.ledger.clean, load.ledger.complaints
        return answer

    answer = asyncio.run(scenario())
    assert (500, code) == (answer.status_code, answer.json()["code"])


def test_a_killer_is_quarantined(tmp_path: Path, tiny: Path) -> None:
    """An image that ended the device process twice is refused when it is sent again."""
    with serving(tmp_path, faults={}, model=tiny) as server, server.client() as client:
        assert 500 == client.post("/v1/classify", content=plain(SEGFAULT)).status_code
        restarts = server.devices()[0]["restarts"]
        again = client.post("/v1/classify", content=plain(SEGFAULT))

        assert 2 == restarts
        assert 500 == again.status_code
        assert "quarantined" in again.json()["detail"]
        assert restarts == server.devices()[0]["restarts"]
        assert 1 == server.metric('vim_quarantined_images_total{model="tiny"}')
        assert "one image failed alone (device_lost)" in server.log


def test_a_hanging_image_is_given_up_at_its_deadline(tmp_path: Path, tiny: Path) -> None:
    """An image that hangs gets 504 at its deadline, the device process is replaced, and the next image is answered."""
    hurry = {"X-Request-Timeout-Ms": "3500"}
    with serving(tmp_path, faults={}, model=tiny, watchdog_ms=3000) as server, server.client() as client:
        assert 504 == client.post("/v1/classify", content=plain(HANG), headers=hurry).status_code
        assert 200 == client.post("/v1/classify", content=photo()).status_code
        assert server.devices()[0]["restarts"] >= 1


@pytest.mark.slow
def test_out_of_memory_is_learned(tmp_path: Path, tiny: Path) -> None:
    """Batches that do not fit in memory are halved and answered, and the metric shows the new limit."""

    async def scenario(server: Server) -> None:
        async with Load(server.url, clients=16) as load:
            await asyncio.sleep(1.5)
        assert load.ledger.clean, load.ledger.complaints
        assert server.metric('vim_batch_limit{device="cpu",model="tiny"}') == server.info()["limits"]["max_batch"] <= 3
        assert "out of memory with" in server.log

    with serving(tmp_path, faults={ROOM: 3, BATCH_S: 0.2}, model=tiny) as server:
        asyncio.run(scenario(server))


@pytest.mark.slow
def test_it_gives_up_and_says_so_when_the_device_cannot_come_back(tmp_path: Path) -> None:
    """If the device cannot restart, waiting requests get 503 and the server ends with status 1."""
    doomed = write_tiny_model(tmp_path / "doomed")
    with serving(tmp_path, model=doomed, max_restarts=1) as server:
        shutil.rmtree(doomed)
        os.kill(server.device_pid(), signal.SIGKILL)

        assert 1 == server.exit_status()
        assert "restarts in a row failed" in server.log


def test_answers_do_not_change_over_a_restart(tmp_path: Path, tiny: Path) -> None:
    """After a restart the embedding of an image is equal to 1e-6."""
    with serving(tmp_path, model=tiny) as server, server.client() as client:
        before = client.post("/v1/embed", content=photo()).json()["results"][0]["embedding"]
        os.kill(server.device_pid(), signal.SIGKILL)
        asyncio.run(wait_for_restarts(server, 1))
        after = client.post("/v1/embed", content=photo()).json()["results"][0]["embedding"]

        assert before == pytest.approx(after, abs=1e-6)
