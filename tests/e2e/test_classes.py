"""Interactive and bulk requests on one server: how many batches each class waits. Longer: `make chaos`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.e2e.faults import BATCH_S
from tests.e2e.server import serving
from tests.e2e.traffic import Bulk, Client, samples
from tests.tiny import photo

BULK_CLIENTS, MAX_BATCH, TURNS = 48, 4, 15
BULK_DEPTH = 'vim_queue_depth{class="bulk"}'


async def batches_passed(url: str) -> tuple[list[float], list[float]]:
    """For interactive requests during bulk: the batches between request and answer, and the queued bulk images."""
    passed, queued = [], []
    client = Client(url)
    async with httpx.AsyncClient(base_url=url, timeout=60) as probe, Bulk(url, BULK_CLIENTS) as bulk:
        while (await samples(probe))[BULK_DEPTH] < BULK_CLIENTS // 2:
            await asyncio.sleep(0.05)
        for _ in range(TURNS):
            before = await samples(probe)
            assert 200 == (await client.post()).status
            after = await samples(probe)
            passed.append(after['vim_batches_total{model="tiny"}'] - before['vim_batches_total{model="tiny"}'])
            queued.append(before[BULK_DEPTH])
        await client.close()
    assert {200} == {reply.status for reply in bulk.replies}
    return passed, queued


def test_an_interactive_request_passes_all_bulk_but_one_batch(tmp_path: Path, tiny: Path) -> None:
    """The median interactive request waits for at most three batches, while many more bulk images are queued."""
    with serving(tmp_path, faults={BATCH_S: 0.1}, model=tiny, max_batch=MAX_BATCH, queue_images=128) as server:
        passed, queued = asyncio.run(batches_passed(server.url))

    assert sorted(passed)[TURNS // 2] <= 3
    assert max(passed) < min(queued) / MAX_BATCH


def test_a_class_is_counted_and_logged(tmp_path: Path, tiny: Path) -> None:
    """Metrics and log show the class of a request, and an unknown class is refused before the body is read."""
    with serving(tmp_path, model=tiny) as server, server.client() as client:
        lazy = client.post("/v1/classify", content=photo(), headers={"X-Request-Class": "bulk"})
        wrong = client.post("/v1/classify", content=b"", headers={"X-Request-Class": "urgent"})
        page = client.get("/metrics").text

        assert 200 == lazy.status_code
        assert (422, "invalid_options") == (wrong.status_code, wrong.json()["code"])
        assert "X-Request-Class must be one of interactive, bulk" in wrong.json()["detail"]
        assert 'vim_images_total{class="bulk",model="tiny",op="classify"} 1.0' in page
        assert 'vim_queue_wait_seconds_count{class="bulk",model="tiny"} 1.0' in page
        assert '"class": "bulk"' in server.log
