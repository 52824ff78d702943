"""What the tests of custom heads share: a server with two heads, and how to ask it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import Head
from service.app import create_app
from tests.service.conftest import running, settings_for
from tests.tiny import photo

ADMIN = {"X-API-Key": "admin-key-of-the-test"}
PHOTO, OTHER = photo(1), photo(2)
TEXT = base64.b64encode(PHOTO).decode()
DIM = 32
LABELS = {"mine": ("cat", "dog", "fish"), "two": ("yes", "no")}


@pytest.fixture(scope="module")
async def client(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with the heads `mine` and `two`."""
    heads = tmp_path_factory.mktemp("heads")
    app = create_app(settings_for(tiny_model, heads_dir=heads, admin_keys=ADMIN["X-API-Key"], max_batch=4))
    async with running(app) as client:
        fingerprint = (await client.get("/info")).json()["model"]["fingerprint"]
        for seed, name in enumerate(LABELS):
            assert 200 == (await put(client, name, head(fingerprint, name, seed))).status_code
        yield client


def head(fingerprint: str, name: str = "mine", seed: int = 0) -> Head:
    """A head of random weights for the model with this fingerprint."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(len(LABELS[name]), DIM)).astype(np.float32)
    return Head(weight, random.normal(size=len(weight)).astype(np.float32), LABELS[name], fingerprint, {"seed": seed})


async def put(client: httpx.AsyncClient, name: str, given: Head | bytes, **headers: str) -> httpx.Response:
    """Send a head with the key of an administrator."""
    data = given if isinstance(given, bytes) else given.to_bytes()
    return await client.put(f"/v1/heads/{name}", content=data, headers=headers or ADMIN)


async def read(client: httpx.AsyncClient, name: str) -> Head:
    """The head as the server has it."""
    return Head.read((await client.get(f"/v1/heads/{name}", headers=ADMIN)).content)


async def expected(client: httpx.AsyncClient, name: str, image: bytes = PHOTO) -> dict[str, float]:
    """The softmax of the head on the raw embedding, by label."""
    one = await read(client, name)
    embedding = (await client.post("/v1/embed?normalize=false", content=image)).json()["results"][0]["embedding"]
    exponentials = np.exp(one.weight.astype(np.float64) @ embedding + one.bias)
    return dict(zip(one.labels, exponentials / exponentials.sum(), strict=True))


def by_label(predictions: Any) -> dict[str, float]:
    """The predictions of an answer."""
    return {one["label"]: one["score"] for one in predictions}
