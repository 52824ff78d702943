"""Overload: a request is refused before its body is read, with a status, a code and a Retry-After."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.engine.admission import BodyAccount
from tests.service.conftest import running, settings_for
from tests.tiny import photo

pytestmark = pytest.mark.anyio

BULK = {"X-Request-Class": "bulk"}


@contextmanager
def full(app: FastAPI) -> Iterator[None]:
    """All free slots are taken inside this context."""
    slots = app.state.engine.backend.slots
    taken = slots.acquire(slots.count - slots.in_use)
    try:
        yield
    finally:
        slots.release(*taken)


async def status(app: FastAPI, messages: list[dict[str, Any]], length: int = 5_000_000) -> int:
    """The status of a POST that declares `length` bytes and sends only these messages."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def test_a_full_queue_refuses_before_the_body_is_read(app: FastAPI, client: httpx.AsyncClient) -> None:
    """With a full queue a request gets 429 before its body is read; with free slots it is answered."""
    with full(app):
        assert 429 == await status(app, messages=[])
        refused = await client.post("/v1/classify", content=photo())
        for probe in ("/livez", "/readyz", "/metrics", "/info"):
            assert 200 == (await client.get(probe)).status_code
    problem = refused.json()

    assert (429, "queue_full") == (refused.status_code, problem["code"])
    assert problem["retry_after_s"] == int(refused.headers["Retry-After"]) >= 1
    assert 200 == (await client.post("/v1/classify", content=photo())).status_code


async def test_refusals_are_counted_by_reason(tiny_model: Path) -> None:
    """Refusals by images and by bytes are counted apart and have the status VIM_OVERLOAD_STATUS."""
    app = create_app(settings_for(tiny_model, queue_images=8, max_batch=8, queue_bytes=9000, overload_status="503"))
    async with running(app) as client:
        with full(app):
            refused = await client.post("/v1/classify", content=photo())
        BodyAccount(app.state.engine.admission, "interactive").receive(8999)
        squeezed = await client.post("/v1/classify", content=photo())
        page = (await client.get("/metrics")).text

    assert (503, "queue_full", 503) == (refused.status_code, refused.json()["code"], refused.json()["status"])
    assert (503, "memory_full") == (squeezed.status_code, squeezed.json()["code"])
    assert "VIM_QUEUE_BYTES" in squeezed.json()["detail"]
    assert "Retry-After" in squeezed.headers
    assert 'vim_rejected_total{reason="queue_full"} 1.0' in page
    assert 'vim_rejected_total{reason="memory_full"} 1.0' in page


async def test_what_can_never_fit_is_413(tiny_model: Path) -> None:
    """More images or bytes than the request class may ever have are refused with 413."""
    app = create_app(settings_for(tiny_model, queue_images=4, max_batch=4, queue_bytes=40_000))
    photos = [("image", photo(seed)) for seed in range(3)]
    async with running(app) as client:
        images = await client.post("/v1/classify", files=photos[:3], headers=BULK)
        size = await client.post("/v1/classify", content=b"x" * 20_001, headers=BULK)
        fits = await client.post("/v1/classify", files=photos[:2])

    assert (413, "too_many_images") == (images.status_code, images.json()["code"])
    assert "limit is 2 (VIM_BULK_PERCENT of VIM_QUEUE_IMAGES)" in images.json()["detail"]
    assert (413, "body_too_large") == (size.status_code, size.json()["code"])
    assert 200 == fits.status_code


async def test_the_memory_of_a_body_is_free_when_its_request_has_ended(app: FastAPI, client: httpx.AsyncClient) -> None:
    """The bytes of a body are free after its request was answered, refused or broken off."""
    begun = {"type": "http.request", "body": photo()[:100], "more_body": True}
    await client.post("/v1/classify", content=photo())
    await client.post("/v1/classify", content=b"no image")
    assert 499 == await status(app, [begun, {"type": "http.disconnect"}])

    assert 0 == app.state.engine.backend.slots.usage.body_bytes["interactive"].own[0]
    assert 'vim_body_bytes{class="interactive"} 0.0' in (await client.get("/metrics")).text
