"""Measure this machine with a model: start-up, decoding by threads, passes by batch size, and both at once.

Uses the device process and the decoder of the service, without HTTP. `service.cli.tune.advice` interprets the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import numpy as np

from model.preprocessing.recipe import Preprocess
from service.cli.backend import CommandError
from service.cli.local import local_engine, settings_for
from service.cli.tune.advice import Measured
from service.devices.messages import Loaded, Ready
from service.devices.pool import WORKER
from service.devices.process import DeviceLost, DeviceProcess
from service.devices.slots import Slots
from service.engine.engine import Engine
from service.errors import ServiceError
from service.images import jpeg
from service.images.decode import DecodeLimits, Decoder
from service.jobs import Job, Task
from service.settings import Settings
from service.system import cpus

LEAST_PASSES = 3
SIDE = (1024, 768)
SAMPLES = 64

Say = Callable[[str], None]


async def measure(settings: Settings, files: Sequence[bytes], seconds: float, say: Say) -> Measured:
    """Run all measurements, about four times `seconds`. Raises CommandError when the model or an image is unusable."""
    kind = f"{len(files)} given images" if files else f"synthetic JPEG files of {SIDE[0]} x {SIDE[1]}"
    samples = list(files) or [photograph(seed) for seed in range(SAMPLES)]
    settings = settings_for(settings, 0, None)
    load = os.getloadavg()[0]
    say("starting ...")
    imports_s = await asyncio.to_thread(_imports)
    async with _device(settings) as (device, views, loaded, ready, start_s):
        say("decoding ...")
        decoding = await asyncio.to_thread(_decode, samples, loaded, settings, seconds)
        say("forward passes ...")
        task = Task("classify" if loaded.model.classes else "embed")
        passes = await _passes(device, views, task, ready.max_batch, seconds)
        settings = _one_device(settings, loaded)
    say("both at once ...")
    together = await _together(settings, samples, task, seconds)
    name = loaded.model.device.name
    source = (
        f"{date.today().isoformat()}, {cpus.available_cpus()} CPUs ({_processor()}), load {load:.1f} before it, "
        f"{kind}, python -m service tune"
    )
    return Measured(
        settings.served_name, name, cpus.available_cpus(), imports_s + start_s, decoding, passes, together, source
    )


def photograph(seed: int) -> bytes:
    """A JPEG file of soft colour patches with a little noise, of a size that is usual on the web."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (12, 16, 3)).astype(np.float32)
    smooth = np.einsum("yi,xj,ijc->yxc", _hats(SIDE[1], 12), _hats(SIDE[0], 16), coarse, optimize=True)
    noisy = smooth + generator.integers(-8, 9, smooth.shape)
    return jpeg.encode(noisy.clip(0, 255).astype(np.uint8))


def _hats(size: int, knots: int) -> np.ndarray:
    """The weights of linear interpolation: (size, knots)."""
    at = np.linspace(0, knots - 1, size, dtype=np.float32)
    weights: np.ndarray = np.clip(1 - abs(at[:, None] - np.arange(knots, dtype=np.float32)), 0, None)
    return weights


def _imports() -> float:
    """Seconds that a server needs for its imports, before it starts its device process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import service.server.server"], check=True, cwd=Path(__file__).parents[3])
    return time.perf_counter() - start


@asynccontextmanager
async def _device(settings: Settings) -> AsyncIterator[tuple[DeviceProcess, np.ndarray, Loaded, Ready, float]]:
    slots = Slots(settings.queue_images)
    device = DeviceProcess(settings, settings.devices[0], slots.descriptor, WORKER)
    start = time.perf_counter()
    try:
        loaded = await device.start()
        area = slots.add(loaded.model.image_size)
        device.attach(slots.total, area)
        while (ready := await device.warm_up()) is None:
            pass
        yield device, slots.views(area), loaded, ready, time.perf_counter() - start
    except DeviceLost as lost:
        raise CommandError(str(lost)) from lost
    finally:
        await device.close()
        slots.close()


def _one_device(settings: Settings, loaded: Loaded) -> Settings:
    """The settings with the first device only, where a server would use all."""
    first = settings.devices[0]
    return settings.model_copy(update={"device": "cuda:0" if loaded.siblings and ":" not in first else first})


def _decode(samples: Sequence[bytes], loaded: Loaded, settings: Settings, seconds: float) -> dict[int, float]:
    scale = settings.decode == "fast"
    jpegs = None if settings.decode == "pillow" else jpeg.Jpegs(settings.cache_dir, scale=scale)
    limits = DecodeLimits(settings.max_pixels, settings.max_decode_bytes)
    decoder = Decoder(Preprocess.from_dict(loaded.model.preprocess), limits, jpegs=jpegs)

    def decode(data: bytes) -> None:
        decoder.decode(data, np.empty((loaded.model.image_size, loaded.model.image_size, 3), np.uint8))

    try:
        decode(samples[0])  # waits for the compiler
        counts = _thread_counts(settings.threads or cpus.available_cpus())
        return {count: _rate(count, decode, samples, seconds / len(counts)) for count in counts}
    except ServiceError as error:
        raise CommandError(f"an image cannot be decoded: {error.detail}") from error


def _thread_counts(most: int) -> list[int]:
    return sorted({*(1 << n for n in range(most.bit_length())), most})


def _rate(threads: int, decode: Callable[[bytes], None], samples: Sequence[bytes], seconds: float) -> float:
    """Images per second with this number of threads, all busy until the time is over."""
    start = time.perf_counter()

    def work(first: int) -> int:
        done = 0
        for data in itertools.islice(itertools.cycle(samples), first, None):
            decode(data)
            done += 1
            if time.perf_counter() - start >= seconds:
                break
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - start)


async def _passes(
    device: DeviceProcess, views: np.ndarray, task: Task, largest: int, seconds: float
) -> dict[int, float]:
    """Median seconds of a pass by batch size; the sizes alternate, so that changes of the machine affect all."""
    noise = np.random.default_rng(0)
    for view in views:
        view[:] = noise.integers(0, 256, view.shape, np.uint8)
    sizes = [1 << n for n in range(largest.bit_length()) if 1 << n < largest] + [largest]
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    end = time.perf_counter() + seconds
    for turn in itertools.count():
        if turn >= LEAST_PASSES and time.perf_counter() >= end:
            break
        for size in sizes:
            done = await device.run([_job(slot, task) for slot in range(size)])
            taken[size].append(done.seconds)
    return {size: statistics.median(times) for size, times in taken.items()}


def _job(slot: int, task: Task) -> Job:
    return Job(slot, task, time.monotonic(), asyncio.get_running_loop().create_future())


async def _together(settings: Settings, samples: Sequence[bytes], task: Task, seconds: float) -> float:
    """Images per second through the engine, with twice the largest batch in flight."""
    async with local_engine(settings) as engine:
        source = _endless(samples)
        await asyncio.gather(*(_client(engine, source, task, 0) for _ in range(2 * engine.find().max_batch)))
        start = time.monotonic()
        clients = [_client(engine, source, task, start + seconds) for _ in range(2 * engine.find().max_batch)]
        done = await asyncio.gather(*clients)
        return sum(done) / (time.monotonic() - start)


def _endless(samples: Sequence[bytes]) -> Iterator[bytes]:
    """Yield files that differ, because identical ones would be computed once. Decoders ignore bytes after the image."""
    for number in itertools.count():
        yield samples[number % len(samples)] + number.to_bytes(8, "big")


async def _client(engine: Engine, source: Iterator[bytes], task: Task, until: float) -> int:
    """Send one image after the other; returns their number."""
    for done in itertools.count(1):
        answer = await engine.infer([next(source)], task, time.monotonic() + 3600)
        if answer.failed:
            raise CommandError(f"an image cannot be used: {answer.outcomes[0]}")
        if time.monotonic() >= until:
            return done
    raise AssertionError


def _processor() -> str:
    """The name of the CPU, or of its architecture where the name is unknown."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
