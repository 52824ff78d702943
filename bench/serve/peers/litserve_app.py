"""LitServe with batching, tuned as its documentation advises.

A worker for each CPU, `batch_timeout` of 5 ms, workers that are restarted, no access log. The photograph is the raw
body and not base64 in JSON as in LitServe's examples, which would be slower. `fast_queue` is left out: in 0.2.19 it has
no effect.
"""

# No `from __future__ import annotations`: LitServe reads the annotation of `decode_request`.
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Depends, Request

from bench.serve.served import Order, Served, decoder

BATCH_TIMEOUT_S = 0.005


async def read(request: Request) -> tuple[str, bytes]:
    """The operation and the photograph."""
    return request.query_params.get("op", "classify"), await request.body()


class Vim(litserve.LitAPI):
    """One worker process."""

    def setup(self, device: str) -> None:
        """Load the model."""
        order = Order.read()
        self.served = Served(order, threads=1)
        self.decode = decoder(order, self.served.preprocess)

    def decode_request(self, request: Annotated[tuple[str, bytes], Depends(read)]) -> tuple[str, np.ndarray]:
        """Photograph -> pixels."""
        op, body = request
        return op, self.decode(body)

    def batch(self, inputs: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
        """Keep the list, because `Served` stacks it."""
        return inputs

    def predict(self, x: list[tuple[str, np.ndarray]]) -> list[dict[str, Any]]:
        """One forward pass; all of a batch have the same operation, except when a client changes it."""
        run = self.served.embed if x[0][0] == "embed" else self.served.classify
        return run([pixels for _, pixels in x])

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the list."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer unchanged."""
        return output


if __name__ == "__main__":
    order = Order.read()
    server = litserve.LitServer(
        Vim(max_batch_size=order.max_batch, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cuda" if order.device == "cuda" else "cpu",
        workers_per_device=order.cpus,
        restart_workers=True,
    )
    server.run(host="127.0.0.1", port=order.port, generate_client_file=False, log_level="warning", access_log=False)
