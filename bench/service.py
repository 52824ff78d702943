"""The service against its own parts: one client beside in-process decode + forward, then many clients at once.

    python -m bench.service --model demo --clients 64 --out bench/results/service.json

Starts `python -m service serve` on a free port of 127.0.0.1 and ends it again. One request and one in-process run
alternate, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil

from bench.decoding import decoder
from bench.load import closed_loop
from bench.photographs import photograph
from service.system import cpus

if TYPE_CHECKING:
    from model.runtime.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def in_process(source: str, max_batch: int) -> Runner:
    """The model in this process, with the thread settings of the device process, set before torch is imported."""
    os.environ.update(cpus.thread_environment(cpus.available_cpus()))  # the heap's have no effect here
    import model
    from model.runtime.runner import Runner

    return Runner(model.load(source, preprocess="friendly"), max_batch=max_batch)


@contextmanager
def server(source: str, max_batch: int) -> Iterator[tuple[str, int, float]]:
    """A ready server: its address, process id, and seconds from start to ready."""
    settings = {"VIM_MODEL": source, "VIM_PORT": "0", "VIM_MAX_BATCH": str(max_batch), "VIM_MAX_WAIT_MS": "0"}
    settings |= {"VIM_REQUEST_TIMEOUT_MS": "120000", "VIM_MODEL_NAME": "bench"}  # the label of its metrics
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        command = [sys.executable, "-m", "service", "serve"]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stderr=log)
        try:
            url = _await_ready(process, log, start + START_TIMEOUT_S)
            yield url, process.pid, time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(30)


def _await_ready(process: subprocess.Popen[bytes], log: io.TextIOBase, deadline: float) -> str:
    while time.perf_counter() < deadline and process.poll() is None:
        log.seek(0)
        text = log.read()
        if (found := _ADDRESS.search(text)) and httpx.get(f"{found[0]}/readyz").status_code == 200:
            return found[0]
        time.sleep(0.05)
    log.seek(0)
    raise SystemExit(f"the server did not become ready:\n{log.read()}")


def pipeline(runner: Runner, bodies: list[bytes], count: int) -> float:
    """Images per second without a service: one thread per CPU decodes ahead while the model runs full batches."""
    size, decode = runner.max_batch, decoder(runner.vim.preprocess)
    decode(bodies[0])
    start = time.perf_counter()
    with ThreadPoolExecutor(cpus.available_cpus()) as pool:
        decoded = pool.map(decode, itertools.islice(itertools.cycle(bodies), count))
        for first in range(0, count, size):
            batch = list(itertools.islice(decoded, min(size, count - first)))
            runner.run(np.stack(batch), scores=True, cls=False, mean=False)
    return count / (time.perf_counter() - start)


def efficiency(url: str, runner: Runner, clients: int, requests: int, rounds: int = 3) -> dict[str, Any]:
    """The throughput of many clients divided by that of the pipeline, measured in turns."""
    bodies = [photograph(seed) for seed in range(8)]
    pairs = [(many_clients(url, clients, requests), pipeline(runner, bodies, requests)) for _ in range(rounds)]
    ratios = [service["images_per_s"] / inside for service, inside in pairs]
    last, inside = pairs[-1]
    return last | {
        "pipeline_images_per_s": round(inside, 1),
        "service_over_pipeline": round(statistics.median(ratios), 3),
    }


def one_client(url: str, runner: Runner, requests: int) -> dict[str, Any]:
    """Alternate in-process decode + forward and a request; medians in ms."""
    body = photograph(0)
    inside, outside, stages = [], [], []
    decode = decoder(runner.vim.preprocess)
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    for turn in range(requests + 5):
        start = time.perf_counter()
        runner.run(decode(body)[None], scores=True, cls=False, mean=False)
        middle = time.perf_counter()
        connection.request("POST", "/v1/classify", body)
        answer = json.loads(connection.getresponse().read())
        end = time.perf_counter()
        if turn >= 5:
            inside.append(middle - start)
            outside.append(end - middle)
            stages.append(answer["timings_ms"])
    connection.close()
    in_process, service = 1000 * statistics.median(inside), 1000 * statistics.median(outside)
    return {
        "in_process_ms": round(in_process, 2),
        "service_ms": round(service, 2),
        "service_minus_in_process_ms": round(service - in_process, 2),
        "queue_p50_ms": round(statistics.median(stage["queue"] for stage in stages), 3),
        "stages_p50_ms": {name: round(statistics.median(stage[name] for stage in stages), 2) for name in stages[0]},
    }


def many_clients(url: str, clients: int, requests: int) -> dict[str, float]:
    """Closed loop: each of `clients` clients sends its next request as soon as it has its answer."""
    before = _batches(url)
    bodies = [photograph(seed) for seed in range(8)]
    answers = asyncio.run(closed_loop(url, "/v1/classify", bodies, clients, requests))
    after = _batches(url)
    latencies = sorted(answers.seconds)
    return {
        "clients": clients,
        "images": len(latencies),
        "mean_batch": round((after[0] - before[0]) / (after[1] - before[1]), 2),
        "images_per_s": round(len(latencies) / answers.elapsed_s, 1),
        "p50_ms": round(1000 * statistics.median(latencies), 1),
        "p99_ms": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
    }


def rendering(url: str, images: int = 64, requests: int = 2) -> dict[str, float]:
    """The share of a request's time that serialising its embeddings takes, measured by the server."""
    files = [("images", (f"{seed}.jpg", photograph(seed), "image/jpeg")) for seed in range(images)]
    forms: dict[str, dict[str, Any]] = {
        "float": {},
        "base64": {"params": {"encoding": "base64"}},
        "octets": {"headers": {"Accept": "application/octet-stream"}},
    }
    shares = {}
    for name, form in forms.items():
        before = _samples(url)
        for _ in range(requests):
            httpx.post(f"{url}/v1/embed", files=files, timeout=120, **form).raise_for_status()
        after = _samples(url)
        spent, whole = (after[key] - before[key] for key in (_RENDERING, _EMBEDDING))
        shares[name] = round(spent / whole, 5)
    return shares


_RENDERING = 'vim_stage_duration_seconds_sum{stage="postprocess"}'
_EMBEDDING = 'vim_request_duration_seconds_sum{api="native",model="bench",op="embed"}'


def _batches(url: str) -> tuple[float, float]:
    """The numbers of images and batches so far, from the histogram of the server."""
    samples = _samples(url)
    return samples['vim_batch_size_sum{model="bench"}'], samples['vim_batch_size_count{model="bench"}']


def _samples(url: str) -> dict[str, float]:
    page = httpx.get(f"{url}/metrics").text
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runner = in_process(options.model, options.max_batch)
    with server(options.model, options.max_batch) as (url, pid, start_s):
        result = {
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before",
            "model": options.model,
            "max_batch": options.max_batch,
            "start_to_ready_s": round(start_s, 1),
            "one_client": one_client(url, runner, options.pairs),
            "many_clients": efficiency(url, runner, options.clients, options.requests),
            "rendering_of_64_embeddings": rendering(url),
            "http_process_rss_mb": round(psutil.Process(pid).memory_info().rss / 1e6),
        }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
