"""Ten times more requests than the server can answer: every request gets an answer. Longer: `make chaos`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from service.engine.admission import LONGEST_RETRY_S
from tests.e2e.faults import BATCH_S
from tests.e2e.overload import measured_rate, overload
from tests.e2e.server import serving
from tests.e2e.traffic import samples
from tests.tiny import photo

QUEUE = 16


async def sample(url: str) -> dict[str, float]:
    """The values of all samples of /metrics."""
    async with httpx.AsyncClient(base_url=url) as probe:
        return await samples(probe)


def test_ten_times_overload_is_refused_and_answered_in_full(tmp_path: Path, tiny: Path) -> None:
    """Admitted images are answered, others get a Retry-After, probes are answered, and no slot stays in use.

    The device is so slow that the sender is faster than it, ten times over.
    """
    with serving(tmp_path, faults={BATCH_S: 0.2}, model=tiny, max_batch=4, queue_images=QUEUE) as server:
        rate = asyncio.run(measured_rate(server.url, clients=8, seconds=2))
        before = asyncio.run(sample(server.url))
        ledger = asyncio.run(overload(server.url, 10 * rate, seconds=3))
        after = asyncio.run(sample(server.url))
        again = httpx.post(f"{server.url}/v1/classify", content=photo(), timeout=120)

    def grown(name: str) -> float:
        return after[name] - before[name]

    answered, refused = len(ledger.seconds(200)), len(ledger.seconds(429))
    assert {200, 429} == {reply.status for reply in ledger.replies}
    assert [] == ledger.broken
    assert answered >= QUEUE
    assert refused > 4 * answered
    assert answered == grown('vim_images_total{class="interactive",model="tiny",op="classify"}')
    assert refused == grown('vim_rejected_total{reason="queue_full"}')
    assert ledger.retries_after_s <= {str(second) for second in range(1, LONGEST_RETRY_S + 1)}
    assert {200} == {status for status, _ in ledger.probes}
    assert ledger.deepest <= QUEUE
    assert 0 == after['vim_queue_depth{class="interactive"}'] == after['vim_body_bytes{class="interactive"}']
    assert 200 == again.status_code
    assert "overloaded: queue full" in server.log
