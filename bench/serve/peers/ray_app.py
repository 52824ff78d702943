"""Ray Serve with `@serve.batch`: a deployment that decodes in threads and batches, behind Ray's HTTP proxy.

`max_ongoing_requests` is raised from its default of 5, which is less than one batch, and batches do not wait. The
documented `RAY_SERVE_THROUGHPUT_OPTIMIZED=1` is set; `RAY_SERVE_ENABLE_HA_PROXY=1` is not, since it listens on every
interface of the machine.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from bench.serve.served import Order, Served, decoder

ORDER = Order.read()


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=1024,
    ray_actor_options={"num_cpus": 1, "num_gpus": int(ORDER.device == "cuda")},
)
class Vim:
    """One replica."""

    def __init__(self) -> None:
        self.served = Served(ORDER, threads=ORDER.cpus)
        self.decode = decoder(ORDER, self.served.preprocess)
        self.threads, self.device = ThreadPoolExecutor(ORDER.cpus), ThreadPoolExecutor(1)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One photograph."""
        body = await request.body()
        pixels = await asyncio.get_running_loop().run_in_executor(self.threads, self.decode, body)
        return await (self.embed(pixels) if request.url.path == "/embed" else self.classify(pixels))

    @serve.batch(max_batch_size=ORDER.max_batch, batch_wait_timeout_s=0)
    async def classify(self, pixels: list[np.ndarray]) -> list[dict[str, Any]]:
        """One forward pass."""
        return await asyncio.get_running_loop().run_in_executor(self.device, self.served.classify, pixels)

    @serve.batch(max_batch_size=ORDER.max_batch, batch_wait_timeout_s=0)
    async def embed(self, pixels: list[np.ndarray]) -> list[dict[str, Any]]:
        """One forward pass."""
        return await asyncio.get_running_loop().run_in_executor(self.device, self.served.embed, pixels)


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": ORDER.port})
    serve.run(Vim.bind(), logging_config={"enable_access_log": False, "log_level": logging.WARNING})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
