"""mosec as in its image classification example: a stage that decodes, with a process for each CPU, then the model.

`max_wait_time` has its lowest value, 1 ms: mosec also batches requests that wait while the model is busy. Pixels are
passed between stages as pickles, mosec's default; its mixins for shared memory need Redis or Plasma.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mosec import Runtime, Server, Worker

from bench.serve.served import Order, Served, decoder, recipe_of

MAX_WAIT_MS = 1


class Decode(Worker):
    """The first stage: photograph -> pixels."""

    def __init__(self) -> None:
        order = Order.read()
        self.decode = decoder(order, recipe_of(order))

    def deserialize(self, data: bytes) -> bytes:
        """The body is the photograph."""
        return data

    def forward(self, data: bytes) -> np.ndarray:
        """Decode one photograph."""
        return self.decode(data)


class Classify(Worker):
    """The second stage: a batch of pixels -> classes."""

    def __init__(self) -> None:
        order = Order.read()
        self.served = Served(order, threads=order.cpus)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        """One forward pass."""
        return self.served.classify(data)


class Embed(Classify):
    """The second stage: a batch of pixels -> embeddings."""

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        """One forward pass."""
        return self.served.embed(data)


if __name__ == "__main__":
    order = Order.read()
    decode = Runtime(Decode, num=order.cpus)
    batching = {"num": 1, "max_batch_size": order.max_batch, "max_wait_time": MAX_WAIT_MS}
    server = Server()
    server.register_runtime(
        {"/classify": [decode, Runtime(Classify, **batching)], "/embed": [decode, Runtime(Embed, **batching)]}
    )
    server.run()
