"""Weaviate's API, with requests as its two modules send them: no Content-Type, base64 without a prefix."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from tests.service.conftest import settings_for
from tests.tiny import photo

pytestmark = pytest.mark.anyio

PHOTOS = [photo(seed) for seed in range(2)]
TEXTS = [base64.b64encode(one).decode() for one in PHOTOS]


async def native(client: httpx.AsyncClient) -> np.ndarray:
    """The embeddings of the same images by the native endpoint."""
    answer = await client.post("/v1/embed", json={"images": TEXTS})
    return np.array([one["embedding"] for one in answer.json()["results"]])


async def send(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    """Send a JSON body without a Content-Type."""
    return await client.post(path, content=json.dumps(body))


@pytest.mark.parametrize("path", ["/vectors", "/vectors/"])
async def test_one_vector(client: httpx.AsyncClient, path: str) -> None:
    """/vectors (img2vec-neural) returns the id, the native vector and its dimension."""
    answer = await send(client, path, {"id": "a-uuid", "image": TEXTS[0]})
    body = answer.json()

    assert (200, "a-uuid", 32) == (answer.status_code, body["id"], body["dim"])
    np.testing.assert_allclose(body["vector"], (await native(client))[0], atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"texts": []}, {"texts": None}])
async def test_many_vectors(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    """/vectorize (multi2vec-clip) always returns `textVectors` and `imageVectors`."""
    body = (await send(client, "/vectorize", {"images": TEXTS} | more)).json()

    assert [] == body["textVectors"]
    np.testing.assert_allclose(body["imageVectors"], await native(client), atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/vectorize", {"texts": ["a cat"]}, 400, "vision-only"),
        ("/vectorize", {"texts": ["a cat"], "images": TEXTS}, 400, "vision-only"),
        ("/vectorize", {}, 400, "no image"),
        ("/vectorize", {"images": "AAAA"}, 400, "must be a list"),
        ("/vectorize", {"images": [TEXTS[0], "AAAA"]}, 415, "image 1: "),
        ("/vectorize", {"images": TEXTS * 33}, 413, "VIM_MAX_IMAGES"),
        ("/vectors", {"id": "1"}, 400, "base64"),
        ("/vectors", {"id": "1", "image": "AAAA"}, 415, "not an image"),
        ("/vectors", [], 400, "object"),
    ],
)
async def test_errors_are_strings_in_json(
    client: httpx.AsyncClient, path: str, body: Any, status: int, says: str
) -> None:
    """Errors are JSON whose `error` is a string, because Weaviate parses it."""
    answer = await send(client, path, body)

    assert status == answer.status_code
    assert says in answer.json()["error"]


async def test_probes_answer_204_also_under_load(client: httpx.AsyncClient) -> None:
    """Both probes answer 204 while image requests are still running."""
    load = [asyncio.create_task(send(client, "/vectorize", {"images": TEXTS * 10})) for _ in range(3)]
    await asyncio.sleep(0)
    statuses = [(await client.get(f"/.well-known/{probe}")).status_code for probe in ("ready", "live") * 10]
    waiting = [task for task in load if not task.done()]
    await asyncio.gather(*load)

    assert [204] * 20 == statuses
    assert waiting


async def test_meta_is_an_object(client: httpx.AsyncClient) -> None:
    """/meta returns an object with the model's name and dimension, which Weaviate shows."""
    meta = (await client.get("/meta")).json()

    assert ("tiny", 32) == (meta["model"]["name"], meta["model"]["embedding_dim"])


async def test_not_ready_before_the_model_is_loaded(tiny_model: Path) -> None:
    """Before the model is loaded the service is live but not ready, and /vectors answers 503."""
    transport = httpx.ASGITransport(create_app(settings_for(tiny_model)))
    async with httpx.AsyncClient(transport=transport, base_url="http://vim") as early:
        assert 204 == (await early.get("/.well-known/live")).status_code
        assert 503 == (await early.get("/.well-known/ready")).status_code
        assert 503 == (await send(early, "/vectors", {"image": TEXTS[0]})).status_code
