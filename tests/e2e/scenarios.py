"""The scenarios of `make chaos`: each starts a server, disturbs it under load, and reports the result."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

import httpx

from tests.e2e.bench import Bench, Line, Recovery, Vitals, counted, strike
from tests.e2e.crowds import bulk_beside_interactive, overloaded
from tests.e2e.faults import BATCH_S, DOWN, IMAGE_S, NOT_FINITE, ROOM, SEGFAULT, Colour, plain
from tests.e2e.load import Load, endless_upload
from tests.e2e.server import Server, gone

Scenario = Callable[[Bench], Coroutine[None, None, Line]]

WARM_S = 5.0  # heaps and pools reach their final size before the measurement
GROWTH_MB = 30.0


async def kills(bench: Bench, model: str) -> Line:
    """Kill the device process with SIGKILL, many times."""
    with bench.server(f"kills_{model}", model) as server:
        async with bench.load(server, model) as load:
            await asyncio.sleep(WARM_S)
            before, recoveries = Vitals.of(server), []
            for _ in range(bench.times):
                await asyncio.sleep(random.uniform(0.2, 0.8))
                recoveries.append(await strike(server, load, signal.SIGKILL))
        after = Vitals.of(server)
    excess = max(one.excess_s for one in recoveries)
    held = load.ledger.clean and excess <= 1 and after.steady(before, GROWTH_MB)
    says = f"{counted(load.ledger)}; {spread(recoveries)}; {after.grown(before)}"
    return Line(f"SIGKILL the device process {bench.times} times, {model}", held, says)


def spread(recoveries: Sequence[Recovery]) -> str:
    """The recovery times without the start-up of the replacements."""
    seconds = [one.seconds for one in recoveries]
    starts = [one.start_up_s for one in recoveries]
    excess = [one.excess_s for one in recoveries]
    return (
        f"recovery {statistics.median(seconds):.1f} s median, {max(seconds):.1f} s worst; logged start-up "
        f"{statistics.median(starts):.1f} s median; beyond it {statistics.median(excess):.2f} s median, "
        f"{max(excess):.2f} s worst; noticed after {max(one.noticed - one.struck for one in recoveries):.2f} s at worst"
    )


async def kill_parent(bench: Bench, first: signal.Signals | None) -> Line:
    """Kill the HTTP process with SIGKILL, with its device process running or stopped."""
    with bench.server(f"kill_parent_{first}") as server:
        async with bench.load(server) as load:
            await asyncio.sleep(1)
            device = server.device_pid()
            if first:
                server.signal_device(first)
            server.signal(signal.SIGKILL)
            start = time.monotonic()
            held = await asyncio.to_thread(gone, device, 5)
            seconds = time.monotonic() - start
            load.stop()
    name = "SIGKILL the parent" + (" of a stopped device process" if first else "")
    return Line(name, held, f"device process gone after {seconds:.2f} s")


async def hang(bench: Bench, model: str, watchdog_s: float) -> Line:
    """Stop the device process with SIGSTOP under load."""
    with bench.server(f"hang_{model}", model, watchdog_ms=int(1000 * watchdog_s)) as server:
        async with bench.load(server, model) as load:
            await asyncio.sleep(WARM_S)
            one = await strike(server, load, signal.SIGSTOP)
            await asyncio.sleep(1)
    says = f"{counted(load.ledger)}; noticed after {one.noticed - one.struck:.1f} s (watchdog {watchdog_s:g} s), "
    says += f"replaced after {one.seconds:.1f} s"
    return Line(f"SIGSTOP the device process, {model}", load.ledger.clean, says)


async def one_bad_image(bench: Bench, name: str, colour: Colour, code: str) -> Line:
    """Send one harmful image among at least 200 good requests."""
    with bench.server(name, faults={}) as server:
        async with bench.load(server) as load, httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            await asyncio.sleep(0.5)
            answer = await client.post("/v1/classify", content=plain(colour))
            while load.ledger.good < 200:
                await asyncio.sleep(0.1)
        restarts = server.devices()[0]["restarts"]
    held = load.ledger.clean and (500, code) == (answer.status_code, answer.json()["code"])
    says = f"{counted(load.ledger)}; the image: {answer.status_code} {answer.json()['code']}; {restarts} deaths"
    return Line(f"{name} on one image", held, says)


async def out_of_memory(bench: Bench) -> Line:
    """Make batches of more than 3 images run out of memory."""
    with bench.server("out_of_memory", faults={ROOM: 3, BATCH_S: 0.2}) as server:
        async with bench.load(server) as load:
            while load.ledger.good < 200:
                await asyncio.sleep(0.1)
        limit = server.info()["limits"]["max_batch"]
    says = f"{counted(load.ledger)}; largest batch now {limit}"
    return Line("out of memory above 3 images", load.ledger.clean and limit <= 3, says)


async def two_devices(bench: Bench) -> Line:
    """With two device processes and VIM_READY_DEVICES=any, kill one, then both, five times."""
    settings = {"device": "cuda:0,cuda:1", "ready_devices": "any"}
    with bench.server("two_devices", faults={IMAGE_S: 0.005}, **settings) as server:
        async with bench.load(server) as load:
            await asyncio.sleep(WARM_S)
            before, unready = Vitals.of(server), 0
            for _ in range(5):
                server.signal_device(signal.SIGKILL)
                unready += await probes_until_two_are_up(server)
                for pid in server.children():
                    server.signal_device(signal.SIGKILL, pid)
                await probes_until_two_are_up(server)
        after = Vitals.of(server)
    held = load.ledger.clean and not unready and after.steady(before, GROWTH_MB)
    says = f"{counted(load.ledger)}; not ready with one dead: {unready} times; {after.grown(before)}"
    return Line("two devices: kill one, then both, 5 times", held, says)


async def probes_until_two_are_up(server: Server) -> int:
    """How often /readyz was not 200 until both device processes were up again."""
    unready = 0
    async with asyncio.timeout(120), httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        await asyncio.sleep(0.3)  # the server has noticed the loss
        while not all(one["up"] for one in (await client.get("/info")).json()["devices"]):
            unready += (await client.get("/readyz")).status_code != 200
            await asyncio.sleep(0.05)
    return unready


async def exhausted(bench: Bench) -> Line:
    """Kill a device process that cannot restart."""
    down = bench.directory / "down"
    with bench.server(
        "exhausted", faults={DOWN: down, IMAGE_S: 0.1}, max_restarts=2, body_timeout_ms=120_000
    ) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            posts = [client.post("/v1/classify", content=plain((n, n, n))) for n in range(40)]
            requests = [asyncio.create_task(request) for request in (*posts, endless_upload(server.url))]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(down.write_text, "cpu")
            server.signal_device(signal.SIGKILL)
            answers = await asyncio.gather(*requests)
        status = await asyncio.to_thread(server.exit_status, 60)
    refused = [answer for answer in answers if answer.status_code == 503]
    held = status == 1 and bool(refused) and {answer.status_code for answer in answers} <= {200, 503}
    says = f"{len(answers)} sent, {len(answers) - len(refused)} x 200, {len(refused)} x 503; exit status {status}"
    return Line("it cannot be brought back", held, says)


async def random_faults(bench: Bench, model: str) -> Line:
    """Kill, crash and stop the device process at random moments, for minutes."""
    with bench.server(f"random_{model}", model, watchdog_ms=5000) as server:
        async with bench.load(server, model) as load:
            await asyncio.sleep(2 * WARM_S)
            before, recoveries, memory = Vitals.of(server), [], []
            end = time.monotonic() + 60 * bench.minutes
            while time.monotonic() < end:
                await asyncio.sleep(random.uniform(0.1, 5))
                number = random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
                recoveries.append((number, await strike(server, load, number)))
                memory.append(Vitals.of(server).megabytes)
        after = Vitals.of(server)
    held = load.ledger.clean and after.steady(before, GROWTH_MB)
    says = f"{len(recoveries)} faults in {bench.minutes:g} min; {counted(load.ledger)}; {after.grown(before)}, "
    says += f"median in the first half {statistics.median(memory[: len(memory) // 2]):.0f} MB, in the second "
    says += f"{statistics.median(memory[len(memory) // 2 :]):.0f} MB; slowest answer {load.ledger.slowest_s:.1f} s; "
    says += spread([one for number, one in recoveries if number != signal.SIGSTOP])  # the watchdog handles SIGSTOP
    return Line(f"faults at random moments, {model}", held, says)


async def terminations(bench: Bench) -> Line:
    """Send SIGTERM at random moments under load, many times; clients continue until no server listens."""
    loads, seen, statuses = [], [], []
    for turn in range(bench.times):
        model, delay = ("demo" if turn % 4 == 3 else "tiny"), random.choice([0, 0, 300])
        # A slow machine replaces devices slowly.
        with bench.server(f"terminate{turn}", model, drain_delay_ms=delay, drain_timeout_ms=150_000) as server:
            loads.append(await terminate(bench.load(server, model), server, dying=turn % 5 == 4))
            statuses.append(server.exit_status(180))
            seen.append(server.requests_seen())
    dropped = sum(len(load.ledger.broken.keys() & ids) for load, ids in zip(loads, seen, strict=True))
    others = sum((load.ledger.others for load in loads), Counter())
    wrong = [text for load in loads for text in load.ledger.wrong]
    return Line(
        f"SIGTERM under load, {bench.times} times",
        not dropped and not others and not wrong and set(statuses) == {0},
        f"{ended(loads)}, {dropped} accepted and dropped, {sum(others.values())} other {dict(others) or ''}, "
        f"{len(wrong)} wrong {wrong[:3] or ''}; "
        f"exit statuses {sorted(set(statuses))}",
    )


async def terminate(load: Load, server: Server, *, dying: bool) -> Load:
    """Send SIGTERM, now or later, sometimes directly after the device process was killed."""
    async with load:
        await asyncio.sleep(random.uniform(0.1, 1.5))
        if dying:
            server.signal_device(signal.SIGKILL)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.exit_status, 180)
    return load


def ended(loads: Sequence[Load]) -> str:
    """The sum of the clients' counts."""
    ledgers = [load.ledger for load in loads]
    cut = sum(len(ledger.broken) for ledger in ledgers)
    return (
        f"{sum(ledger.sent for ledger in ledgers)} sent: {sum(ledger.good for ledger in ledgers)} x 200, "
        f"{sum(ledger.refused for ledger in ledgers)} refused as due, {sum(one.turned_away for one in ledgers)} found "
        f"no listener, {cut} cut off"
    )


SCENARIOS: dict[str, Scenario] = {
    "kills": partial(kills, model="tiny"),
    "kills_demo": partial(kills, model="demo"),
    "kill_parent": partial(kill_parent, first=None),
    "kill_parent_stopped": partial(kill_parent, first=signal.SIGSTOP),
    "hang": partial(hang, model="tiny", watchdog_s=2),
    "hang_demo": partial(hang, model="demo", watchdog_s=5),
    "segfault": partial(one_bad_image, name="segfault", colour=SEGFAULT, code="inference_failed"),
    "not_finite": partial(one_bad_image, name="NaN", colour=NOT_FINITE, code="non_finite_output"),
    "out_of_memory": out_of_memory,
    "two_devices": two_devices,
    "exhausted": exhausted,
    "overload": overloaded,
    "bulk": bulk_beside_interactive,
    "terminations": terminations,
    "random_faults": partial(random_faults, model="demo"),
}
