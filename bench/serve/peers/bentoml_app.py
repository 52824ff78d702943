"""BentoML with adaptive batching: a batchable endpoint that takes files, in a worker process for each CPU.

`max_latency_ms` is large, so that the dispatcher does not cancel requests that would still count; access logging is
off. Not used: a service that decodes in front of one with the model, as its documentation shows for preprocessing; at
64 clients 19 of 399 calls between the two failed ("Server disconnected").
"""

# No `from __future__ import annotations`: BentoML reads the annotations.
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from bench.serve.served import Order, Served, decoder

ORDER = Order.read()
BATCHING: dict[str, Any] = {"batchable": True, "max_batch_size": ORDER.max_batch, "max_latency_ms": 60_000}
Photograph = Annotated[Path, ContentType("image/jpeg")]


@bentoml.service(workers=ORDER.cpus, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Vim:
    """Photographs in, one object for each out."""

    def __init__(self) -> None:
        self.served = Served(ORDER, threads=1)
        self.decode = decoder(ORDER, self.served.preprocess)

    @bentoml.api(**BATCHING)
    def classify(self, images: list[Photograph]) -> list[dict[str, Any]]:
        """One forward pass."""
        return self.served.classify([self.decode(image.read_bytes()) for image in images])

    @bentoml.api(**BATCHING)
    def embed(self, images: list[Photograph]) -> list[dict[str, Any]]:
        """One forward pass."""
        return self.served.embed([self.decode(image.read_bytes()) for image in images])
