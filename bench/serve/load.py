"""The load on a server, from a process of its own: python -m bench.serve.load < load.json > records.json

Closed loop: a number of clients, each with its next request when it has its answer. Open loop: requests at the times of
a Poisson process or of bursts, whether or not the server keeps up; latency counts from the time at which a request was
due. Every image differs from every other in its last bytes: identical ones in flight may be computed once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from bench.serve.wire import LOST, Connection, connect, post

TIMED_OUT = -1  # the status of a request whose client gave up
BOUNDARY = "bench-of-many-images"
MOST_CONNECTIONS = 4000


@dataclass(frozen=True)
class Load:
    """What to send: `clients` in a closed loop, or else `rate` requests a second, in bursts of `burst`."""

    port: int
    path: str
    corpus: str  # a folder with one folder of photographs for each size
    sizes: dict[str, float]  # how often each size is sent
    seconds: float
    clients: int = 0
    rate: float = 0.0
    burst: int = 0
    images: int = 1  # in a request
    form: bool = False  # whether one form has all images of a request; else each is a body
    most: int = 0  # requests of each client, if not as many as fit into the time
    slow_clients: int = 0  # clients that send their photograph slowly
    warm_s: float = 0.5
    patience_s: float = 2.0
    says_ms: int = 0  # the time limit in the header of every request; 0: no header
    seed: int = 0


@dataclass
class Records:
    """Of each request: when it was due, when it ended (seconds from the end of the warm-up), its status."""

    due: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    body: str = ""  # of the last answer
    cpu_s: float = 0.0  # of the sender itself, warm-up included


class Sender:
    """Sends requests over persistent connections, as many as are needed."""

    def __init__(self, load: Load, start: float) -> None:
        self.records = Records()
        self._load = load
        self._start = start + load.warm_s
        self._idle: list[Connection] = []
        self._count = 0
        self._parts = _requests(load)
        self._last = b""

    async def one(self, due: float) -> None:
        """Send one request, which was due at this time of `time.perf_counter`."""
        wanted = 1 if self._load.form else self._load.images
        if wanted == 1:
            status = await self._ask(due)
        else:
            status = min(await asyncio.gather(*(self._ask(due) for _ in range(wanted))), key=_badness)
        self.records.due.append(round(due - self._start, 5))
        self.records.end.append(round(time.perf_counter() - self._start, 5))
        self.records.status.append(status)
        self.records.body = self._last.decode(errors="replace")

    def close(self) -> None:
        """Close all open connections."""
        for connection in self._idle:
            connection.close()

    async def _ask(self, due: float) -> int:
        connection = await self._connection()
        left = due + self._load.patience_s - time.perf_counter()
        timer = asyncio.get_running_loop().call_later(max(0.01, left), connection.close)
        status = await connection.ask(next(self._parts))
        timer.cancel()
        if status == 200:
            self._last = connection.body
        if connection.open:
            self._idle.append(connection)
        else:
            self._count -= 1
        late = time.perf_counter() - due >= self._load.patience_s
        return TIMED_OUT if status == LOST and late else status

    async def _connection(self) -> Connection:
        while True:
            while self._idle:
                if (connection := self._idle.pop()).open:
                    return connection
                self._count -= 1
            if self._count < MOST_CONNECTIONS:
                self._count += 1
                return await connect(self._load.port)
            await asyncio.sleep(0.005)


def _badness(status: int) -> int:
    return {200: 10_000}.get(status, status)


async def run(load: Load) -> Records:
    """Send all requests and wait for the answers."""
    start = time.perf_counter()
    sender = Sender(load, start)
    slow = [asyncio.create_task(_slow(load, start)) for _ in range(load.slow_clients)]
    await (_closed(load, sender, start) if load.clients else _open(load, sender, start))
    for task in slow:
        task.cancel()
    sender.close()
    return sender.records


async def _closed(load: Load, sender: Sender, start: float) -> None:
    end = start + load.warm_s + load.seconds

    async def client() -> None:
        asked = 0
        while (now := time.perf_counter()) < end and not 0 < load.most <= asked:
            await sender.one(now)
            asked += 1

    await asyncio.gather(*(client() for _ in range(load.clients)))


async def _open(load: Load, sender: Sender, start: float) -> None:
    tasks = []
    for offset in due_times(load):
        if (wait := start + offset - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(sender.one(start + offset)))
    await asyncio.gather(*tasks)


def due_times(load: Load) -> Iterator[float]:
    """Seconds after the start at which requests are due."""
    draw, now = random.Random(load.seed), 0.0
    group = load.burst or 1
    while True:
        now += group / load.rate if load.burst else draw.expovariate(load.rate)
        if now >= load.warm_s + load.seconds:
            return
        yield from itertools.repeat(now, group)


async def _slow(load: Load, start: float) -> None:
    """A photograph in pieces of a kilobyte, twenty a second, over and over."""
    photograph = next(iter(_photographs(load)))
    while time.perf_counter() < start + load.warm_s + load.seconds:
        connection = await connect(load.port)
        connection.write([post(load.path, len(photograph))])
        for first in range(0, len(photograph), 1024):
            connection.write([photograph[first : first + 1024]])
            await asyncio.sleep(0.05)
        connection.close()


def _photographs(load: Load) -> Iterator[bytes]:
    """A photograph drawn at random: first its size, then the file."""
    draw = random.Random(load.seed)
    files = {size: [p.read_bytes() for p in sorted((Path(load.corpus) / size).glob("*.jpg"))] for size in load.sizes}
    names, weights = list(load.sizes), list(load.sizes.values())
    while True:
        yield draw.choice(files[draw.choices(names, weights)[0]])


def _requests(load: Load) -> Iterator[list[bytes]]:
    """Requests in parts, so that no photograph is copied."""
    numbers = (number.to_bytes(8, "big") for number in itertools.count())
    photographs = _photographs(load)
    while True:
        if load.form:
            yield form(load.path, [(next(photographs), next(numbers)) for _ in range(load.images)], load.says_ms)
        else:
            photograph = next(photographs)
            head = post(load.path, len(photograph) + 8, allowed_ms=load.says_ms)
            yield [head, photograph, next(numbers)]


def form(path: str, images: list[tuple[bytes, bytes]], says_ms: int = 0) -> list[bytes]:
    """A request with many images, each in two parts."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="image.jpg"\r\n'
    opening = f"{head}Content-Type: image/jpeg\r\n\r\n".encode()
    parts = [part for photograph, number in images for part in (opening, photograph, number, b"\r\n")]
    parts.append(f"--{BOUNDARY}--\r\n".encode())
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    return [post(path, sum(map(len, parts)), content_type, says_ms), *parts]


def main() -> None:
    """Read a load, run it, write its records and the CPU seconds that sending took."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * MOST_CONNECTIONS), hard), hard))
    load = Load(**json.load(sys.stdin))
    records = uvloop.run(run(load))
    records.cpu_s = time.process_time()
    json.dump(asdict(records), sys.stdout)


if __name__ == "__main__":
    main()
