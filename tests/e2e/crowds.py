"""Lines of `make chaos` about too many requests: ten times overload, and bulk at full speed beside interactive."""

from __future__ import annotations

import asyncio

import httpx

from tests.e2e.bench import Bench, Line, Vitals
from tests.e2e.faults import BATCH_S, IMAGE_S
from tests.e2e.overload import measured_rate, overload
from tests.e2e.traffic import Bulk, Client, percentile, samples

MAX_BATCH, QUEUE = 8, 32
SLOW = {BATCH_S: 0.02, IMAGE_S: 0.02}  # a device so slow that the sender can be ten times faster than it
OVERLOAD_S, TURNS = 30.0, 60
GROWTH_MB = 20.0


async def overloaded(bench: Bench) -> Line:
    """Ten times as many requests as the device can answer, for half a minute."""
    with bench.server("overload", faults=SLOW, max_batch=MAX_BATCH, queue_images=QUEUE) as server:
        rate = await measured_rate(server.url, clients=2 * MAX_BATCH, seconds=5)
        await overload(server.url, 10 * rate, seconds=5)  # time for pools to reach their final size
        before = Vitals.of(server)
        ledger = await overload(server.url, 10 * rate, OVERLOAD_S)
        after = Vitals.of(server)
    good, refused = ledger.seconds(200), ledger.seconds(429)
    probes = [seconds for status, seconds in ledger.probes if status == 200]
    known = len(good) + len(refused) == len(ledger.replies)
    held = known and not ledger.broken and len(probes) == len(ledger.probes) and ledger.deepest <= QUEUE
    says = (
        f"{rate:.0f} images/s measured, {len(ledger.replies) / OVERLOAD_S:.0f} requests/s sent; {len(good)} answered, "
        f"p99 {percentile(good, 99):.2f} s (queue / rate {QUEUE / rate:.2f} s); {len(refused)} refused, p99 "
        f"{1000 * percentile(refused, 99):.0f} ms; {len(probes)} of {len(ledger.probes)} probes 200, p99 "
        f"{1000 * percentile(probes, 99):.0f} ms; {len(ledger.broken)} broken; Retry-After "
        f"{'/'.join(sorted(ledger.retries_after_s))} s; {after.grown(before)}"
    )
    return Line("ten times overload for 30 s", held and after.megabytes - before.megabytes < GROWTH_MB, says)


async def bulk_beside_interactive(bench: Bench) -> Line:
    """Occasional interactive requests: alone, and while bulk requests fill their share."""
    with bench.server("bulk", faults=SLOW, max_batch=MAX_BATCH, queue_images=128) as server:
        alone, _ = await _trickle(server.url)
        async with Bulk(server.url, 64) as bulk:
            await asyncio.sleep(2)
            beside, queued = await _trickle(server.url)
    excess = percentile(beside, 99) - percentile(alone, 99)
    batch = percentile([reply.body["timings_ms"]["infer"] / 1000 for reply in bulk.replies if reply.status == 200], 99)
    statuses = {reply.status for reply in bulk.replies}
    says = (
        f"interactive p99 {1000 * percentile(alone, 99):.0f} ms alone, {1000 * percentile(beside, 99):.0f} ms beside "
        f"{len(bulk.replies)} bulk images ({queued:.0f} queued at least): {1000 * excess:+.0f} ms, "
        f"where a batch of {MAX_BATCH} takes {1000 * batch:.0f} ms (p99); bulk p99 "
        f"{percentile([reply.seconds for reply in bulk.replies], 99):.2f} s"
    )
    return Line("bulk at full speed beside interactive", statuses == {200} and excess <= batch, says)


async def _trickle(url: str) -> tuple[list[float], float]:
    """Seconds of each request, sent one after the other, and the smallest bulk queue seen when sending."""
    client, seconds, queued = Client(url), [], []
    async with httpx.AsyncClient(base_url=url, timeout=60) as probe:
        for _ in range(TURNS):
            queued.append((await samples(probe))['vim_queue_depth{class="bulk"}'])
            reply = await client.post()
            assert reply.status == 200
            seconds.append(reply.seconds)
            await asyncio.sleep(0.05)
    await client.close()
    return seconds, min(queued)
