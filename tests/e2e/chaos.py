"""`make chaos`: long runs of real faults under constant load, and a table of what was lost (nothing may be).

    python -m tests.e2e.chaos [--minutes 10] [--only NAME ...] [--json FILE]

Each line starts its own server on 127.0.0.1 and ends it. Exit status 1 when a line does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import httpx
import psutil
from PIL import Image

from tests.e2e.faulty_worker import NOT_FINITE, SEGFAULT
from tests.e2e.load import Load
from tests.e2e.server import Server, gone, serving
from tests.tiny import photo, write_tiny_model

RECOVERY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    held: bool
    says: str


@dataclass(frozen=True)
class Bench:
    """Where a scenario works: a folder for logs, the model, the length of the long run."""

    directory: Path
    model: Path
    minutes: float

    def server(self, name: str, *, faulty: bool = False, **settings: object) -> AbstractContextManager[Server]:
        """A ready server with its own log."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return serving(folder, faulty=faulty, model=self.model, **settings)


Scenario = Callable[[Bench], Coroutine[None, None, Line]]


def plain(colour: tuple[int, int, int]) -> bytes:
    """An image of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(encoded, "PNG")
    return encoded.getvalue()


async def recovered(server: Server, restarts: int) -> float:
    """Seconds until the device process has been replaced so often and serves."""
    start = time.monotonic()
    async with asyncio.timeout(RECOVERY_TIMEOUT_S), httpx.AsyncClient(base_url=server.url) as client:
        while True:
            device = (await client.get("/info")).json()["devices"][0]
            if device["restarts"] >= restarts and device["up"]:
                return time.monotonic() - start
            await asyncio.sleep(0.02)


def memory_mb(server: Server) -> float:
    """Resident memory of the HTTP process."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 1e6


async def kills(bench: Bench) -> Line:
    """SIGKILL the device process 20 times under constant load."""
    with bench.server("kills") as server:
        async with Load(server.url) as load:
            first_start = start_up_seconds(server)
            before, times = memory_mb(server), []
            for number in range(1, 21):
                await asyncio.sleep(random.uniform(0.2, 0.8))
                os.kill(server.device_pid(), signal.SIGKILL)
                times.append(await recovered(server, number))
        grown, children = memory_mb(server) - before, len(server.children())
        slowest = max(times)
        held = load.ledger.clean and children == 1 and grown < 20
        says = (
            f"{load.ledger.statuses[200]} answered, {len(load.ledger.broken)} lost, {load.ledger.wrong} wrong; "
            f"recovery {sorted(times)[10]:.1f} s median, {slowest:.1f} s worst (first start {first_start:.1f} s); "
            f"{children} device process, memory +{grown:.0f} MB"
        )
        return Line("SIGKILL the device process 20 times", held, says)


def start_up_seconds(server: Server) -> float:
    """The device process's own logged start-up time."""
    lines = [json.loads(line)["message"] for line in server.log.splitlines() if "is up after" in line]
    return float(lines[0].split("after ")[1].split(" s")[0])


async def kill_parent(bench: Bench) -> Line:
    """SIGKILL the HTTP process."""
    with bench.server("kill_parent") as server:
        device = server.device_pid()
        server.signal(signal.SIGKILL)
        start = time.monotonic()
        held = gone(device, within_s=5)
        return Line("SIGKILL the parent", held, f"device process gone after {time.monotonic() - start:.2f} s")


async def hang(bench: Bench) -> Line:
    """SIGSTOP the device process."""
    with bench.server("hang", watchdog_ms=2000) as server:
        async with Load(server.url) as load:
            await asyncio.sleep(1)
            os.kill(server.device_pid(), signal.SIGSTOP)
            seconds = await recovered(server, 1)
            await asyncio.sleep(1)
        says = (
            f"replaced after {seconds:.1f} s (watchdog 2 s); {load.ledger.statuses[200]} answered, none lost or wrong"
        )
        return Line("SIGSTOP the device process", load.ledger.clean, says if load.ledger.clean else str(load.ledger))


async def poison(bench: Bench) -> Line:
    """A segfault on one image among 200 good ones."""
    good = [photo(seed) for seed in range(8)]
    bodies = [good[turn % 8] for turn in range(200)]
    bodies.insert(77, plain(SEGFAULT))
    statuses = await _post_all(bench, "poison", bodies)
    held = statuses.count(200) == 200 and statuses.count(500) == 1 and statuses[77] == 500
    return Line("segfault on one image among 200", held, f"{statuses.count(200)} x 200, {statuses.count(500)} x 500")


async def not_finite(bench: Bench) -> Line:
    """NaN for one image among 50."""
    bodies = [photo(turn % 8) for turn in range(50)]
    bodies.insert(20, plain(NOT_FINITE))
    statuses = await _post_all(bench, "not_finite", bodies)
    held = statuses.count(200) == 50 and statuses[20] == 500
    return Line("NaN for one image among 50", held, f"{statuses.count(200)} x 200, {statuses.count(500)} x 500")


async def _post_all(bench: Bench, name: str, bodies: list[bytes], **settings: object) -> list[int]:
    with bench.server(name, faulty=True, **settings) as server:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            answers = await asyncio.gather(*(client.post("/v1/classify", content=body) for body in bodies))
        return [answer.status_code for answer in answers]


async def out_of_memory(bench: Bench) -> Line:
    """Out of memory above 3 images a batch."""
    os.environ["FAULTY_ROOM"] = "3"
    try:
        with bench.server("out_of_memory", faulty=True) as server:
            async with Load(server.url, clients=16) as load:
                await asyncio.sleep(4)
            limit = server.info()["limits"]["max_batch"]
    finally:
        del os.environ["FAULTY_ROOM"]
    held = load.ledger.clean and limit <= 3
    return Line(
        "out of memory above 3 images", held, f"{load.ledger.statuses[200]} answered; largest batch now {limit}"
    )


async def random_kills(bench: Bench) -> Line:
    """Kills and stops at random moments, for minutes."""
    end = time.monotonic() + 60 * bench.minutes
    with bench.server("random_kills", watchdog_ms=2000) as server:
        async with Load(server.url) as load:
            await asyncio.sleep(5)
            before, number = memory_mb(server), 0
            while time.monotonic() < end:
                await asyncio.sleep(random.uniform(0.1, 5))
                number += 1
                os.kill(server.device_pid(), random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV]))
                await recovered(server, number)
        grown = memory_mb(server) - before
    says = f"{number} faults in {bench.minutes:g} min; {load.ledger.statuses[200]} answered, "
    says += f"{len(load.ledger.broken)} lost, {load.ledger.wrong} wrong; memory {grown:+.0f} MB"
    return Line("faults at random moments", load.ledger.clean and grown < 30, says)


async def terminations(bench: Bench) -> Line:
    """SIGTERM at random moments under load, 20 times: requests sent before the listener closes are all answered."""
    dropped, statuses, answered = 0, [], 0
    for turn in range(20):
        with bench.server(f"terminate{turn}", drain_delay_ms=1000) as server:
            async with Load(server.url) as load:
                await asyncio.sleep(random.uniform(0.2, 1.0))
                server.signal(signal.SIGTERM)
                await asyncio.sleep(0.8)  # still listening: the drain delay is 1 s
                load.stop()
            dropped += len(load.ledger.broken) + (not load.ledger.clean)
            answered += load.ledger.statuses[200]
            statuses.append(server.exit_status())
    held = not dropped and set(statuses) == {0}
    says = f"{answered} answered, {dropped} dropped, exit statuses {sorted(set(statuses))}"
    return Line("SIGTERM under load, 20 times", held, says)


SCENARIOS: dict[str, Scenario] = {
    "kills": kills,
    "kill_parent": kill_parent,
    "hang": hang,
    "poison": poison,
    "not_finite": not_finite,
    "out_of_memory": out_of_memory,
    "terminations": terminations,
    "random_kills": random_kills,
}


def main() -> int:
    """Run the scenarios, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), write_tiny_model(Path(folder) / "tiny"), options.minutes)
        for name in options.only:
            line = asyncio.run(SCENARIOS[name](bench))
            lines.append(line)
            print(f"{'ok  ' if line.held else 'FAIL'}  {line.name:38}  {line.says}", flush=True)
    if options.json:
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        result = {"date": date.today().isoformat(), "machine": machine, "minutes": options.minutes}
        options.json.write_text(json.dumps(result | {"lines": [asdict(line) for line in lines]}, indent=2) + "\n")
    return 0 if all(line.held for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
