"""Probes, /info and /metrics, and their answers before the model is ready."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import UnsupportedImage
from service.images.decode import Decoder
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio


async def test_probes_are_200_when_ready(client: httpx.AsyncClient) -> None:
    """/livez, /readyz and /health answer 200 when the service is ready."""
    for path in ("/livez", "/readyz", "/health"):
        assert 200 == (await client.get(path)).status_code


async def test_info_says_what_is_served(client: httpx.AsyncClient) -> None:
    """/info shows the model, its preprocessing, the device, the scan and why, the limits and the image formats."""
    info = (await client.get("/info")).json()

    names = ("name", "family", "classes", "scores", "embedding_dim", "mean_embedding_dim")
    assert ["tiny", "vim", 7, "softmax", 32, 32] == [info["model"][name] for name in names]
    assert ("numba", "fused") == (info["scan"]["name"], info["scan"]["path"])
    assert "fastest" in info["scan"]["why"]
    assert {"type": "cpu", "name": "cpu", "threads": 1} == info["device"]
    assert "friendly" == info["preprocess"]["mode"]
    assert 8 == info["limits"]["max_batch"]
    assert ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG XL"] == info["formats"]


async def test_metrics_count_requests_and_batches(client: httpx.AsyncClient) -> None:
    """/metrics shows a request and its batch directly afterwards."""
    await client.post("/v1/classify", content=photo())
    page = (await client.get("/metrics")).text

    assert 'vim_requests_total{api="native",code="200",model="tiny",op="classify"}' in page
    assert "vim_batch_size_bucket" in page
    assert 'vim_ready{model="tiny"} 1.0' in page


async def test_unknown_paths_and_methods_have_the_same_error_shape(client: httpx.AsyncClient) -> None:
    """404 and 405 of the router have the format of all other errors."""
    missing, wrong = await client.get("/v1/clasify"), await client.get("/v1/classify")

    assert (404, "not_found") == (missing.status_code, missing.json()["code"])
    assert (405, "method_not_allowed") == (wrong.status_code, wrong.json()["code"])


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    """A 405 has all methods of the path in `Allow` (RFC 9110)."""
    allowed = {path: (await client.put(path)).headers["Allow"] for path in ("/", "/v1/embed", "/livez", "/v2")}

    assert {"/": "GET, HEAD, POST", "/v1/embed": "POST", "/livez": "GET, HEAD", "/v2": "GET, HEAD"} == allowed


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    """HEAD is answered like GET without a body on paths with GET; elsewhere with 405."""
    got, asked = await client.get("/info"), await client.head("/info")

    assert (200, b"") == (asked.status_code, asked.content)
    assert got.headers["Content-Type"] == asked.headers["Content-Type"]
    assert 405 == (await client.head("/v1/classify")).status_code


async def test_nothing_is_redirected(client: httpx.AsyncClient) -> None:
    """A path with a trailing slash answers 404 and is not redirected to the host that the client sent."""
    response = await client.get("/info/", headers={"Host": "elsewhere.example"})

    assert (404, "not_found") == (response.status_code, response.json()["code"])


async def test_server_timing_names_the_stages(client: httpx.AsyncClient) -> None:
    """The Server-Timing header has the time of every stage."""
    response = await client.post("/v1/classify", content=photo())

    assert all(f"{stage};dur=" in response.headers["Server-Timing"] for stage in ("decode", "queue", "infer", "total"))


async def test_openapi_declares_the_raw_body_and_the_errors(client: httpx.AsyncClient) -> None:
    """The OpenAPI document describes the image body and the errors of an operation."""
    operation = (await client.get("/openapi.json")).json()["paths"]["/v1/classify"]["post"]

    assert "image/*" in operation["requestBody"]["content"]
    assert {"413", "415", "429", "503", "504"} <= set(operation["responses"])


async def test_openapi_knows_of_keys_where_there_are_any(tiny_model: Path) -> None:
    """With API keys the OpenAPI document has a 401, in the format of the contract, except for probes."""
    with_keys = create_app(settings_for(tiny_model, api_keys="a-key-of-the-tests")).openapi()["paths"]
    without = create_app(settings_for(tiny_model)).openapi()

    def refusal(path: str, method: str) -> str:
        content: dict[str, Any] = with_keys[path][method]["responses"]["401"]["content"]
        return str(content["application/json"]["schema"]["$ref"]).rpartition("/")[2]

    assert "Problem" == refusal("/v1/classify", "post")
    assert "OpenAIProblem" == refusal("/v1/models", "get")
    assert "401" not in with_keys["/livez"]["get"]["responses"]
    assert "401" not in without["paths"]["/v1/classify"]["post"]["responses"]
    assert "securitySchemes" not in without["components"]


async def test_not_ready_until_loaded_and_while_draining(tiny_model: Path) -> None:
    """Readiness is 503 before the model is loaded and while draining; liveness is 200, and requests are served."""
    app = create_app(settings_for(tiny_model))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://vim") as early:
        assert 200 == (await early.get("/livez")).status_code
        assert 503 == (await early.get("/readyz")).status_code
        assert 503 == (await early.get("/info")).status_code
        refused = await early.post("/v1/classify", content=photo())
        assert (503, "not_ready") == (refused.status_code, refused.json()["code"])
    async with running(app) as client:
        app.state.engine.backend.drain()
        assert 503 == (await client.get("/readyz")).status_code
        assert 200 == (await client.post("/v1/classify", content=photo())).status_code


async def test_a_deadline_is_answered_504_and_frees_the_slot(tiny_model: Path) -> None:
    """A request beyond its deadline is answered with 504, and its slot is freed."""
    app = create_app(settings_for(tiny_model, request_timeout_ms=1))
    async with running(app) as client:
        response = await client.post("/v1/classify", content=photo(size=(2000, 2000)))

        assert (504, "deadline_exceeded") == (response.status_code, response.json()["code"])
        await _drained(app)


async def test_decodes_past_their_deadline(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every decoding thread is overdue the service is live but not ready; afterwards it is ready again."""
    release = threading.Event()

    def endless(*_: object) -> None:
        release.wait(30)
        raise UnsupportedImage("at last")

    app = create_app(settings_for(tiny_model, request_timeout_ms=300))
    async with running(app) as client:
        monkeypatch.setattr(Decoder, "decode", endless)
        response = await client.post("/v1/classify", content=photo(size=(2000, 1000)))
        async with asyncio.timeout(10):
            while (ready := await client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
        alive = await client.get("/livez")
        busy = (await client.get("/metrics")).text
        release.set()
        await _drained(app)

        assert (504, "deadline_exceeded") == (response.status_code, response.json()["code"])
        assert (503, "not_ready", 200) == (ready.status_code, ready.json()["code"], alive.status_code)
        assert "decoding thread" in ready.json()["detail"]
        assert "vim_decode_busy 1.0" in busy
        assert 200 == (await client.get("/readyz")).status_code


async def _drained(app: FastAPI) -> None:
    async with asyncio.timeout(10):
        while app.state.engine.backend.slots.in_use:
            await asyncio.sleep(0.01)


async def test_limits_on_bytes_and_pixels_name_setting_and_value(tiny_model: Path) -> None:
    """Bodies and images beyond the limits get 413, in every contract, with the setting and its value."""
    app = create_app(settings_for(tiny_model, max_body_bytes=5000, max_pixels=6000))

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    async with running(app) as client:
        declared = await client.post("/v1/classify", content=b"x" * 5001)
        streamed = await client.post("/v1/classify", content=stream())
        pixels = await client.post("/v1/classify", content=photo(size=(100, 61)))
        others = [
            (path, await client.post(path, content=content))
            for path in (
                "/v2/models/tiny/infer",
                "/v1/embeddings",
                "/embeddings",
                "/",
                "/predict",
                "/vectorize",
                "/vectors",
            )
            for content in (b"x" * 5001, stream())
        ]
    for response in (declared, streamed):
        assert (413, "body_too_large") == (response.status_code, response.json()["code"])
        assert "5000 (VIM_MAX_BODY_BYTES)" in response.json()["detail"]
    for path, response in others:  # of one shape for each contract, however the body came
        assert (413, "application/json") == (response.status_code, response.headers["Content-Type"])
        assert ("embeddings" in path) == isinstance(response.json()["error"], dict)
        assert "5000 (VIM_MAX_BODY_BYTES)" in response.json()["detail"]
    assert (413, "too_many_pixels") == (pixels.status_code, pixels.json()["code"])
    assert "VIM_MAX_PIXELS" in pixels.json()["detail"]
    assert "6000" in pixels.json()["detail"].replace(",", "")


async def test_a_body_that_does_not_arrive_is_answered_408(tiny_model: Path) -> None:
    """A body that does not arrive within VIM_BODY_TIMEOUT_MS is answered with 408."""
    app = create_app(settings_for(tiny_model, body_timeout_ms=100))
    over = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield photo()[:100]
        await over.wait()

    async with running(app) as client:
        response = await client.post("/v1/classify", content=trickle())
        over.set()

    assert (408, "body_timeout") == (response.status_code, response.json()["code"])
    assert "100 ms (VIM_BODY_TIMEOUT_MS)" in response.json()["detail"]


async def test_a_model_without_a_head_embeds_only(tmp_path: Path) -> None:
    """Without a classifier head /v1/classify answers 404 no_classifier, and /v1/embed works."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "headless", num_classes=0)))
    async with running(app) as client:
        classified = await client.post("/v1/classify", content=photo())
        embedded = await client.post("/v1/embed", content=photo())

    assert (404, "no_classifier") == (classified.status_code, classified.json()["code"])
    assert 200 == embedded.status_code


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": 1}, "channels"),
        ({"image_size": (64, 96)}, "64x96"),
        ({"image_size": (32, 32)}, "32 px"),
        ({"class_token": "none", "pool": "all"}, "per token"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that cannot be served is logged with the reason, and clients get 503."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "odd", **changes)))
    async with running(app) as client:
        answers = [await client.get("/readyz"), await client.post("/v1/classify", content=photo())]

    assert reason in caplog.text
    for answer in answers:
        assert 503 == answer.status_code
        assert "the model cannot be served; the server's log has the reason" == answer.json()["detail"]
