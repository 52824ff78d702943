"""The parts that all peers share: the model code and weights of `model/`, its preprocessing, and the form of answers.

A peer's own file has only the code that its framework needs. Settings are environment variables, because some
frameworks start their processes themselves.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from model.config import VimConfig
from model.loading.source import resolve
from model.preprocessing.recipe import Preprocess

PREFIX = "BENCH_SERVE_"
Decode = Callable[[bytes], np.ndarray]


@dataclass(frozen=True)
class Order:
    """The model and the address that `bench.serve` passes to a peer's processes."""

    source: str
    standin: bool
    device: str
    decoder: str  # pillow or compiled
    max_batch: int
    port: int
    cpus: int

    def environment(self) -> dict[str, str]:
        """The variables that `Order.read` reads."""
        return {PREFIX + name.upper(): str(value) for name, value in vars(self).items()}

    @classmethod
    def read(cls) -> Order:
        """Read the order from the environment of this process."""
        text = {name: os.environ[PREFIX + name.upper()] for name in cls.__dataclass_fields__}
        numbers = {name: int(text[name]) for name in ("max_batch", "port", "cpus")}
        return cls(text["source"], text["standin"] == "True", text["device"], text["decoder"], **numbers)


class Served:
    """The loaded model: batches of pixels in, one JSON object for each image out. Not for several threads at once."""

    def __init__(self, order: Order, threads: int) -> None:
        import torch

        import model
        from model.runtime.runner import Runner

        if order.standin:
            from bench.serve import standin

            standin.install()
        else:
            torch.set_num_threads(threads)
        vim = model.load(order.source, preprocess="friendly", device="cpu" if order.standin else order.device)
        self._runner = Runner(vim, max_batch=order.max_batch)
        self._runner.verify_scan("auto")
        self._names = vim.labels.names
        self.preprocess = vim.preprocess
        for _ in self._runner.warm_up():
            pass

    def classify(self, pixels: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The five best classes of each image, best first."""
        scores = self._runner.run(np.stack(pixels), scores=True, cls=False, mean=False).scores
        assert scores is not None
        return [{"predictions": [self._prediction(row, int(i)) for i in np.argsort(-row)[:5]]} for row in scores]

    def embed(self, pixels: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The embedding of each image, at unit length."""
        rows = self._runner.run(np.stack(pixels), scores=False, cls=True, mean=False).cls
        assert rows is not None
        return [{"embedding": row} for row in (rows / np.linalg.norm(rows, axis=1, keepdims=True)).tolist()]

    def _prediction(self, row: np.ndarray, index: int) -> dict[str, Any]:
        return {"index": index, "label": self._names[index], "score": float(row[index])}


def decoder(order: Order, recipe: Preprocess) -> Decode:
    """JPEG bytes -> uint8 (H, W, 3), by Pillow, or by this project's compiled decoder."""
    if order.decoder == "compiled":
        from bench import decoding  # not needed if Pillow decodes

        return decoding.decoder(recipe)

    def decode(data: bytes) -> np.ndarray:
        return recipe(Image.open(io.BytesIO(data)))

    return decode


def recipe_of(order: Order) -> Preprocess:
    """The model's preprocessing, for processes that decode and load neither weights nor torch."""
    parts = resolve(order.source)
    assert parts.config is not None
    assert parts.preprocess is not None
    size = VimConfig.read(parts.config).image_size[0]
    return Preprocess.from_dict({"size": size} | json.loads(parts.preprocess.read_text()) | {"mode": "friendly"})
