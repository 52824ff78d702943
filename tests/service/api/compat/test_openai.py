"""OpenAI's embeddings, with recorded requests of OpenAI's and compatible clients."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from tests.service.conftest import running, settings_for
from tests.tiny import photo

pytestmark = pytest.mark.anyio

PATH = "/v1/embeddings"
PHOTOS = [photo(seed) for seed in range(3)]
URIS = [f"data:image/jpeg;base64,{base64.b64encode(one).decode()}" for one in PHOTOS]


async def native(client: httpx.AsyncClient, **options: Any) -> np.ndarray:
    """The embeddings of the same images by the native endpoint."""
    answer = await client.post("/v1/embed", json={"images": URIS} | options)
    return np.array([one["embedding"] for one in answer.json()["results"]])


@pytest.mark.parametrize("path", [PATH, "/embeddings"])
async def test_floats_equal_the_native_answer(client: httpx.AsyncClient, path: str) -> None:
    """Embeddings equal the native ones, in order, with every member that OpenAI's client requires."""
    answer = await client.post(path, json={"model": "tiny", "input": URIS, "encoding_format": "float", "user": "me"})
    body = answer.json()

    assert ("list", "tiny", {"prompt_tokens": 3, "total_tokens": 3}) == (body["object"], body["model"], body["usage"])
    assert [("embedding", 0), ("embedding", 1), ("embedding", 2)] == [(o["object"], o["index"]) for o in body["data"]]
    np.testing.assert_allclose([one["embedding"] for one in body["data"]], await native(client), atol=1e-6)
    assert 12 == len(answer.headers["X-Model-Fingerprint"])


@pytest.mark.parametrize("word", ["encoding_format", "embedding_type", "encoding_type"])
async def test_base64_is_little_endian_float32(client: httpx.AsyncClient, word: str) -> None:
    """Base64 embeddings are little-endian float32, requested by OpenAI's member or one of Jina's."""
    body = (await client.post(PATH, json={"model": "tiny", "input": URIS, word: "base64"})).json()
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in body["data"]]

    np.testing.assert_allclose(found, await native(client), atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"input": URIS[0]},
        {"input": URIS[0], "model": "tiny", "modality": "image"},
        {"input": URIS[0], "model": "default/not-specified", "dimensions": 0},
        {"input": [{"image": base64.b64encode(PHOTOS[0]).decode()}], "model": "tiny", "dimensions": 32},
        {"input": [{"bytes": base64.b64encode(PHOTOS[0]).decode()}], "task": "retrieval.passage"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URIS[0]}}]}]},
    ],
)
async def test_every_spelling_of_one_image(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """The request formats of infinity, Jina and vLLM give the same embedding, without a Content-Type."""
    answer = await client.post(PATH, content=httpx.Request("POST", "http://x", json=body).content)

    assert 200 == answer.status_code, answer.text
    np.testing.assert_allclose([answer.json()["data"][0]["embedding"]], (await native(client))[:1], atol=1e-6)


async def test_normalised_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    """Jina's `normalized: false` gives embeddings that are not normalised."""
    body = (await client.post(PATH, json={"input": URIS, "normalized": False})).json()
    expected = await native(client, normalize=False)

    np.testing.assert_allclose([one["embedding"] for one in body["data"]], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"input": "a cat"}, 400, "unsupported_input", "vision-only"),
        ({"input": [URIS[0], "a cat"]}, 400, "unsupported_input", "image 1: "),
        ({"input": [[1037, 4937]]}, 422, "invalid_options", "token ids"),
        ({"input": [1037, 4937]}, 422, "invalid_options", "token ids"),
        ({"input": "https://example.org/a.png"}, 400, "url_not_supported", "not fetched"),
        ({"input": {"image": "AAAA"}}, 415, "unsupported_image", "not an image"),
        ({"input": URIS, "model": "text-embedding-3-small"}, 404, "model_not_found", "this server has 'tiny'"),
        ({"input": URIS, "modality": "text"}, 400, "unsupported_input", "vision-only"),
        ({"input": URIS, "dimensions": 256}, 400, "unsupported_input", "32 dimensions, not 256"),
        ({"input": URIS, "encoding_format": "int8"}, 422, "invalid_options", "encoding_format"),
        ({"input": []}, 400, "empty_body", "no image"),
        ({"input": URIS * 30}, 413, "too_many_images", "VIM_MAX_IMAGES"),
        ({}, 422, "invalid_options", "either input or messages"),
        ({"input": URIS, "messages": []}, 422, "invalid_options", "either input or messages"),
        ([], 400, "malformed_body", "object"),
    ],
)
async def test_errors_are_objects_with_a_message(
    client: httpx.AsyncClient, body: Any, status: int, code: str, says: str
) -> None:
    """Errors have `error.message` for OpenAI's clients and the same text in `detail` for Jina's."""
    answer = await client.post(PATH, json=body, headers={"X-Request-ID": "mine"})
    error = answer.json()["error"]

    assert (status, code, "mine") == (answer.status_code, error["code"], answer.json()["request_id"])
    assert says in error["message"]
    assert ("invalid_request_error", None) == (error["type"], error["param"])
    assert answer.json()["detail"] == error["message"]


async def test_models(client: httpx.AsyncClient) -> None:
    """/v1/models lists the served model and returns it by its id; another id gets 404."""
    (one,) = (await client.get("/v1/models")).json()["data"]
    missing = await client.get("/v1/models/gpt-5")

    assert ("tiny", "model", "vim-server") == (one["id"], one["object"], one["owned_by"])
    assert isinstance(one["created"], int)
    assert one == (await client.get("/v1/models/tiny")).json()
    assert (404, "model_not_found") == (missing.status_code, missing.json()["error"]["code"])


async def test_other_errors_under_these_paths_have_the_same_shape(client: httpx.AsyncClient) -> None:
    """Router errors 404 and 405 have OpenAI's format under its paths only; elsewhere `error` is a string."""
    wrong = await client.get(PATH)
    below = await client.get(PATH + "/x")
    elsewhere = await client.get("/v1/embeddingsx")

    assert (405, "method_not_allowed") == (wrong.status_code, wrong.json()["error"]["code"])
    assert (404, "not_found") == (below.status_code, below.json()["error"]["code"])
    assert isinstance(elsewhere.json()["error"], str)


async def test_refusals_and_failures_have_their_types(tiny_model: Path) -> None:
    """Before the model is loaded there is a 503 with Retry-After; a body that is too large gets 413."""
    app = create_app(settings_for(tiny_model, max_body_bytes=100))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://vim") as early:
        refused = await early.post(PATH, json={"input": URIS[0]})
        listed = await early.get("/v1/models")
    async with running(app) as client:
        large = await client.post(PATH, json={"input": URIS[0]})

    assert (503, "server_error", "1") == (
        refused.status_code,
        refused.json()["error"]["type"],
        refused.headers["Retry-After"],
    )
    assert 200 == listed.status_code
    assert (413, "body_too_large") == (large.status_code, large.json()["error"]["code"])
