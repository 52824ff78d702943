"""FastAPI as its documentation recommends: an endpoint that sends blocking work to a thread pool. No batching.

Two worker processes (`uvicorn --workers`, one for each CPU), each with the model and with a pool of one thread, so that
there are never more forward passes than CPUs.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, UploadFile

from bench.serve.served import Order, Served, decoder


def create_app() -> FastAPI:
    """The application of one worker process."""
    order = Order.read()
    served = Served(order, threads=1)
    decode = decoder(order, served.preprocess)
    pool = ThreadPoolExecutor(1)
    app = FastAPI()

    def classify_all(images: list[bytes]) -> list[dict[str, Any]]:
        size = order.max_batch
        pixels = [decode(data) for data in images]
        batches = [pixels[first : first + size] for first in range(0, len(pixels), size)]
        return [one for batch in batches for one in served.classify(batch)]

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        body = await request.body()
        return (await asyncio.get_running_loop().run_in_executor(pool, classify_all, [body]))[0]

    @app.post("/classify-many")
    async def classify_many(images: list[UploadFile]) -> list[dict[str, Any]]:
        bodies = [await image.read() for image in images]
        return await asyncio.get_running_loop().run_in_executor(pool, classify_all, bodies)

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, Any]:
        body = await request.body()
        work = lambda: served.embed([decode(body)])[0]  # noqa: E731
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    return app


if __name__ == "__main__":
    order = Order.read()
    uvicorn.run(
        "bench.serve.peers.fastapi_app:create_app",
        factory=True,
        port=order.port,
        workers=order.cpus,
        access_log=False,
        log_level="warning",
        timeout_worker_healthcheck=600,  # the process is paused while other servers are measured
    )
