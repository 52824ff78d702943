"""Several HTTP processes form one service: one queue, the same /metrics, and any of them may end."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.load import Load
from tests.e2e.server import Server, gone, serving
from tests.e2e.traffic import samples
from tests.tiny import photo

CLIENTS = 8
_GROWS = re.compile(r"_(total|bucket|count|sum)(\{|$)")


STARTED, ENDED = "Application startup complete", "was killed by signal 9; starting another"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server with two HTTP processes and one device process."""
    with serving(tmp_path_factory.mktemp("two"), model=tiny, http_workers=2) as server:
        yield server


def test_every_process_answers_for_all_of_them(server: Server) -> None:
    """All HTTP processes report the same counts, and log lines name the process that answered."""
    requests, found = 0, set[str]()
    while len(found) < 2:
        requests += 1
        assert requests < 100, "the kernel gives every connection to the same process"
        answer = httpx.post(f"{server.url}/v1/classify", content=photo(requests), timeout=60)
        assert 200 == answer.status_code
        found = set(re.findall(r'"vim.request", "message": "[^"]+", "process": "(http-\d)"', server.log))
    image = base64.b64encode(photo()).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [image]}
    for _ in range(3):
        httpx.post(f"{server.url}/v2/models/tiny/infer", json={"inputs": [tensor]}, timeout=60).raise_for_status()

    everywhere = [_views(server) for _ in range(8)]

    assert [everywhere[0]] * 8 == everywhere
    assert {"images": requests + 3, "batches": requests + 3, "capacity": 256, "ready": 1, "inferences": 3} == {
        name: everywhere[0][name] for name in ("images", "batches", "capacity", "ready", "inferences")
    }


def _views(server: Server) -> dict[str, Any]:
    """The state that the process of a new connection reports."""
    [statistics] = httpx.get(f"{server.url}/v2/models/tiny/stats", timeout=60).json()["model_stats"]
    return {
        "images": server.metric('vim_images_total{class="interactive",model="tiny",op="classify"}'),
        "batches": server.metric('vim_batches_total{model="tiny"}'),
        "capacity": server.metric("vim_queue_capacity"),
        "ready": server.metric('vim_ready{model="tiny"}'),
        "inferences": statistics["inference_count"],
        # both are sent to every process a few times a second, so they may differ for a moment
        "info": {name: value for name, value in server.info().items() if name not in ("batch_seconds", "queue")},
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_ends_or_hangs_takes_only_its_own_requests(server: Server, number: signal.Signals) -> None:
    """An HTTP process that ends or hangs is replaced, its slots are freed, and no counter decreases."""
    starts, ends = (server.log.count(text) for text in (STARTED, ENDED))

    async def scenario() -> Load:
        victim, other = server.http_processes()
        async with Load(server.url, CLIENTS) as load, asyncio.TaskGroup() as group:
            over = asyncio.Event()
            watch = group.create_task(_watch(server, over))
            await asyncio.sleep(0.5)
            os.kill(victim, number)
            async with asyncio.timeout(90):
                while server.log.count(STARTED) == starts:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            load.stop()
            over.set()
        assert watch.result() > 3
        assert other in server.http_processes()
        return load

    load = asyncio.run(scenario())

    assert 2 == len(server.http_processes())
    assert ends + 1 == server.log.count(ENDED)
    assert not load.ledger.unexpected + load.ledger.wrong, load.ledger.complaints
    assert load.ledger.lost <= CLIENTS, load.ledger.complaints  # one request of each client may be in flight
    assert load.ledger.good > CLIENTS
    server.wait_for(lambda: server.metric('vim_queue_depth{class="interactive"}') == 0)
    assert 256 == server.metric("vim_queue_capacity")


def test_all_processes_share_the_limits(tmp_path: Path, tiny: Path) -> None:
    """Any of four processes may use the whole queue and the whole decoding memory, and all name the same limits."""
    with serving(tmp_path, model=tiny, http_workers=4, queue_images=256, max_decode_bytes=4_000_000) as server:
        statuses = asyncio.run(_large_requests(server, clients=4, images=64, rounds=3))
        config = httpx.get(f"{server.url}/v2/models/tiny/config", timeout=60).json()
        large = photo(size=(800, 800))  # takes more than a quarter of the decoding memory
        answer = httpx.post(f"{server.url}/v1/classify", content=large, timeout=60)
        too_large = httpx.post(f"{server.url}/v1/classify", content=photo(size=(1500, 1500)), timeout=60)

        assert [200] * 12 == statuses
        assert 64 == config["max_batch_size"]
        assert 200 == answer.status_code
        assert "the limit is 4000000 (VIM_MAX_DECODE_BYTES)" in too_large.json()["detail"]


async def _large_requests(server: Server, *, clients: int, images: int, rounds: int) -> list[int]:
    """The statuses of requests that fill the queue exactly, each client on a new connection for each."""
    files = [("image", photo(number)) for number in range(images)]

    async def client() -> list[int]:
        statuses = []
        for _ in range(rounds):
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as one:
                statuses.append((await one.post("/v1/embed", files=files)).status_code)
        return statuses

    found = await asyncio.gather(*[client() for _ in range(clients)])
    return [status for statuses in found for status in statuses]


async def _watch(server: Server, over: asyncio.Event) -> int:
    """Request /metrics repeatedly, on a new connection each time; returns the number of answers."""
    seen: dict[str, float] = {}
    pages = 0
    while not over.is_set():
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as probe:
            try:
                page = await samples(probe)
            except httpx.TransportError:  # the connection was to the killed process
                continue
        pages += 1
        for name in filter(_GROWS.search, page):
            assert page[name] >= seen.get(name, 0), name
        seen |= page
    return pages


def test_nothing_is_lost_when_the_device_process_dies(server: Server) -> None:
    """When the device process dies, the images of both HTTP processes wait for the next one."""

    async def scenario() -> Load:
        before = server.devices()[0]["restarts"]
        async with Load(server.url, CLIENTS) as load:
            await asyncio.sleep(0.5)
            os.kill(server.device_pid(), signal.SIGKILL)
            async with asyncio.timeout(180):
                while (device := server.devices()[0])["restarts"] == before or not device["up"]:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        return load

    load = asyncio.run(scenario())

    assert load.ledger.clean, load.ledger.complaints


def test_one_poison_image_is_quarantined_for_all(tmp_path: Path, tiny: Path) -> None:
    """A quarantined image is refused by every HTTP process before it reaches a device."""
    from tests.e2e.faults import SEGFAULT, plain

    with serving(tmp_path, faults={}, model=tiny, http_workers=2) as server:
        answers = [httpx.post(f"{server.url}/v1/classify", content=plain(SEGFAULT), timeout=120) for _ in range(6)]

        assert [(500, "inference_failed")] * 6 == [(one.status_code, one.json()["code"]) for one in answers]
        assert 2 == server.metric('vim_device_lost_total{device="cpu",model="tiny"}')
        assert 1 == server.metric('vim_quarantined_images_total{model="tiny"}')


def test_the_service_ends_when_its_model_cannot_be_loaded(tmp_path: Path) -> None:
    """When the model cannot be loaded, the service ends with status 1 and leaves no process."""
    server = Server(tmp_path / "server.log", model=tmp_path / "nothing", http_workers=2)

    assert 1 == server.exit_status()
    assert "nothing" in server.log


def test_a_port_that_is_taken_and_a_wrong_setting_end_it(server: Server, tmp_path: Path, tiny: Path) -> None:
    """A port in use by another such service, and a wrong setting that only a child finds, end the service."""
    taken = Server(tmp_path / "taken.log", model=tiny, http_workers=2, port=server.url.rpartition(":")[2])
    keys = Server(tmp_path / "keys.log", model=tiny, http_workers=2, api_keys_file=tmp_path / "none")

    assert 1 == taken.exit_status()
    assert "already in use" in taken.log
    assert 2 == keys.exit_status()
    assert "VIM_API_KEYS_FILE" in keys.log


def test_killing_the_parent_ends_everything(tmp_path: Path, tiny: Path) -> None:
    """When the parent is killed, the kernel ends all of its processes."""
    with serving(tmp_path, model=tiny, http_workers=2) as server:
        children = [*server.http_processes(), *server.children()]
        assert 3 == len(children)

        server.signal(signal.SIGKILL)

        assert all(gone(pid, within_s=30) for pid in children)
