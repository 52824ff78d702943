"""Images by URL through every contract: off by default, one error for all causes, limits, deadline, memory, log."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.request.links import FAILED, Links
from service.app import create_app
from service.engine.admission import BodyAccount
from service.errors import Draining
from service.fetch.fetcher import FetchLimits
from service.jobs import Link, Task
from tests.service.api.native.test_bulk import scope
from tests.service.conftest import running, settings_for
from tests.service.fetch.fake_web import FakeWeb, Page
from tests.tiny import photo

pytestmark = pytest.mark.anyio

PHOTO = photo()
TEXT = base64.b64encode(PHOTO).decode()
URL = "http://a.example/photo.jpg?signature=secret"
OTHER, HUNG, PAGE, DAMAGED = (f"http://a.example/{name}" for name in ("other.jpg", "hung", "page", "damaged.jpg"))
MISSING, INSIDE, BIG = "http://a.example/missing", "http://127.0.0.1/photo.jpg", "http://a.example/big"
PAGES = {
    URL: Page([PHOTO[:100], PHOTO[100:]]),
    OTHER: Page([photo(1)]),
    HUNG: Page([PHOTO[:100]], hangs="end"),
    PAGE: Page([b"<html>welcome</html>"]),
    DAMAGED: Page([PHOTO[:200]]),
    BIG: Page([b"x" * 100_000], endless=True),
}
LIMITS = FetchLimits(max_bytes=1_000_000, timeout_s=30, concurrency=4)
# Path, body with an image, and the place of its values in the answer.
WAYS: list[tuple[str, Any, str]] = [
    ("/v1/embed", {"images": ["IMAGE"]}, "results.0.embedding"),
    ("/v1/bulk", {"image": "IMAGE"}, "embedding"),
    ("/v1/embeddings", {"input": "IMAGE"}, "data.0.embedding"),
    ("/v1/embeddings", {"input": [{"image_url": {"url": "IMAGE"}}]}, "data.0.embedding"),
    (
        "/v1/embeddings",
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "IMAGE"}}]}]},
        "data.0.embedding",
    ),
    ("/predict", {"inputs": "IMAGE"}, "0.score"),
    ("/vectorize", {"images": ["IMAGE"]}, "imageVectors.0"),
    ("/vectors", {"image": "IMAGE"}, "vector"),
]


@pytest.fixture(scope="module")
async def online(tiny_model: Path, anyio_backend: object) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application that may fetch, and its client; `web` sets the web that it fetches from."""
    app = create_app(settings_for(tiny_model, fetch_max_urls=3, queue_images=8, max_batch=4))
    async with running(app) as client:
        yield app, client


@pytest.fixture
def web(online: tuple[FastAPI, httpx.AsyncClient]) -> FakeWeb:
    """The web of one test."""
    web = FakeWeb({}, PAGES)
    online[0].state.links = Links(online[0].state.engine, web.fetcher(limits=LIMITS))
    return web


@pytest.fixture
def asking(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> httpx.AsyncClient:
    """A client of the application that fetches from this web."""
    return online[1]


def used(app: FastAPI) -> int:
    """Bytes of bodies that are counted now."""
    counts = app.state.engine.backend.slots.usage.body_bytes
    return int(counts["interactive"].own[0] + counts["bulk"].own[0])


def with_image(body: Any, image: str) -> bytes:
    """The body, with an image in its place."""
    return json.dumps(body).replace("IMAGE", image).encode()


def at(content: Any, place: str) -> Any:
    """The value at a place such as data.0.embedding."""
    for key in place.split("."):
        content = content[int(key) if key.isdigit() else key]
    return content


def code(response: httpx.Response) -> str:
    """The code of an error, in the format of any contract."""
    body = response.json()
    return str(body["error"]["code"] if isinstance(body.get("error"), dict) else body["code"])


async def fetches(client: httpx.AsyncClient) -> dict[str, float]:
    """`vim_fetches_total` by outcome."""
    page = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r'vim_fetches_total\{outcome="(\w+)"\} (\S+)', page)}


@pytest.mark.parametrize(("path", "body", "place"), WAYS)
async def test_a_url_gives_what_its_bytes_give(asking: httpx.AsyncClient, path: str, body: Any, place: str) -> None:
    """In every contract an image by URL has the result of the same image in base64."""
    by_url = await asking.post(path, content=with_image(body, URL))
    by_text = await asking.post(path, content=with_image(body, TEXT))

    assert (200, 200) == (by_url.status_code, by_text.status_code), by_url.text
    assert at(by_text.json(), place) == pytest.approx(at(by_url.json(), place), abs=1e-5)


@pytest.mark.parametrize(("path", "body", "place"), WAYS)
async def test_nothing_is_fetched_unless_hosts_are_set(
    client: httpx.AsyncClient, path: str, body: Any, place: str
) -> None:
    """Without VIM_FETCH_HOSTS a URL is refused, and the message names the setting."""
    response = await client.post(path, content=with_image(body, URL))

    assert "url_not_supported" == code(response)
    assert "VIM_FETCH_HOSTS" in response.text


@pytest.mark.parametrize(("path", "body", "place"), WAYS)
async def test_every_contract_has_the_same_error(asking: httpx.AsyncClient, path: str, body: Any, place: str) -> None:
    """A URL that cannot be fetched is 422 fetch_failed, in the format of the contract."""
    response = await asking.post(path, content=with_image(body, INSIDE))

    assert ("fetch_failed", 200 if path == "/v1/bulk" else 422) == (code(response), response.status_code)


async def test_tensors_have_no_urls(asking: httpx.AsyncClient, web: FakeWeb) -> None:
    """The Open Inference Protocol accepts no URL in BYTES, with any settings."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [URL]}
    model = (await asking.get("/v1/models")).json()["data"][0]["id"]
    response = await asking.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})

    assert (400, "url_not_supported") == (response.status_code, code(response))
    assert [] == web.dialled


async def test_the_causes_of_a_failure_cannot_be_told_apart(asking: httpx.AsyncClient) -> None:
    """A forbidden host, a missing page, a page that is not an image and one that is too large get equal answers."""
    answers = [await asking.post("/v1/embed", json={"images": [url]}) for url in (INSIDE, MISSING, PAGE, BIG)]
    bodies = [response.json() | {"request_id": ""} for response in answers]

    assert [422] * 4 == [response.status_code for response in answers]
    assert [bodies[0]] * 4 == bodies
    assert FAILED == bodies[0]["detail"]


async def test_one_image_that_cannot_be_fetched_harms_no_other(asking: httpx.AsyncClient) -> None:
    """An image that cannot be fetched has an error in its place, and the others are answered."""
    response = await asking.post("/v1/embed", json={"images": [URL, MISSING, TEXT, DAMAGED]})
    results = response.json()["results"]

    assert 200 == response.status_code
    assert ["embedding", "fetch_failed", "embedding", "unsupported_image"] == [
        one["error"]["code"] if "error" in one else "embedding" for one in results
    ]


async def test_the_lines_of_a_stream_are_fetched_each_for_itself(asking: httpx.AsyncClient) -> None:
    """Each line has its image or its error, in order, and nothing stays counted."""
    body = b"\n".join(json.dumps({"id": url, "image": url}).encode() for url in (URL, MISSING, OTHER, URL))
    answers = [json.loads(line) for line in (await asking.post("/v1/bulk", content=body)).text.splitlines()]

    assert [URL, MISSING, OTHER, URL] == [one["id"] for one in answers]
    assert [True, False, True, True] == ["embedding" in one for one in answers]


async def test_the_same_url_is_fetched_once(asking: httpx.AsyncClient, web: FakeWeb) -> None:
    """A URL that is in a request several times is fetched once, and counts once against the limit."""
    response = await asking.post("/v1/embed", json={"images": [URL, OTHER, URL, URL, OTHER]})

    assert [True] * 5 == ["embedding" in one for one in response.json()["results"]]
    assert 2 == len(web.requests)


async def test_too_many_urls_are_refused_before_any_is_fetched(asking: httpx.AsyncClient, web: FakeWeb) -> None:
    """More different URLs than VIM_FETCH_MAX_URLS are 413, and nothing is dialled."""
    response = await asking.post("/v1/embed", json={"images": [f"{URL}&{number}" for number in range(4)]})

    assert (413, "too_many_images") == (response.status_code, code(response))
    assert "4 different URLs in one request; the limit is 3 (VIM_FETCH_MAX_URLS)" in response.json()["detail"]
    assert [] == web.dialled


async def test_the_log_has_the_reason_without_the_query(
    asking: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the request id, the host, the outcome and the reason; neither path nor query are in it."""
    url = "http://user:secret@b.example/secret?secret"
    with caplog.at_level(logging.DEBUG):
        await asking.post("/v1/embed", json={"images": [url]}, headers={"X-Request-ID": "abc"})
    (record,) = [one for one in caplog.records if one.name == "vim.fetch"]

    reason = "the host is not written as a name, an IPv4 address or [an IPv6 address], perhaps with a port"
    expected = {"request_id": "abc", "host": "b.example", "outcome": "not_allowed", "reason": reason}
    assert expected == vars(record)["fields"]
    assert "secret" not in str([vars(one) for one in caplog.records])


async def test_fetches_are_counted_by_outcome(asking: httpx.AsyncClient) -> None:
    """Each fetch is counted once, by how it ended."""
    before = await fetches(asking)
    await asking.post("/v1/embed", json={"images": [URL, URL, INSIDE, MISSING]})
    await asking.post("/v1/embed", json={"images": [PAGE, BIG]})
    after = await fetches(asking)

    expected = {"ok": 1, "not_allowed": 1, "bad_response": 1, "not_an_image": 1, "too_large": 1}
    assert expected == {name: after[name] - before[name] for name in after if after[name] > before[name]}


async def test_the_requests_deadline_counts(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> None:
    """A fetch that outlasts the request's time is ended: 504, and the bytes that had arrived are free."""
    app, client = online
    before = await fetches(client)
    headers = {"X-Request-Timeout-Ms": "100"}
    response = await client.post("/v1/embed", json={"images": [HUNG]}, headers=headers)
    line = await client.post("/v1/bulk", content=with_image({"image": "IMAGE"}, HUNG), headers=headers)

    assert (504, "deadline_exceeded") == (response.status_code, code(response))
    assert "deadline_exceeded" == code(line)
    assert 2 == (await fetches(client))["given_up"] - before["given_up"]
    assert [True, True] == [body.closed for body in web.bodies]
    assert 0 == used(app)


async def test_a_fetch_has_a_time_of_its_own(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> None:
    """A fetch that outlasts VIM_FETCH_TIMEOUT_MS is a failed fetch; the other images are answered."""
    app, client = online
    app.state.links = Links(app.state.engine, web.fetcher(limits=FetchLimits(1_000_000, 0.05, 4)))
    results = (await client.post("/v1/embed", json={"images": [HUNG, TEXT]})).json()["results"]

    assert ["fetch_failed", None] == [one.get("error", {}).get("code") for one in results]


async def test_a_client_that_leaves_ends_its_fetches(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> None:
    """When the client disconnects, its fetches are cancelled and their bytes are free."""
    app, client = online
    before = await fetches(client)
    messages = [{"type": "http.request", "body": json.dumps({"images": [HUNG]}).encode()}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        while not web.bodies or not web.bodies[0].read:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    await app(scope() | {"path": "/v1/embed", "raw_path": b"/v1/embed"}, receive, send)

    assert 1 == (await fetches(client))["given_up"] - before["given_up"]
    assert [True] == [body.closed for body in web.bodies]
    assert 0 == used(app)


async def test_fetched_bytes_count_as_those_of_bodies(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> None:
    """Without room for the bytes the request is refused with 429, its other fetches end, and no byte stays counted."""
    app, client = online
    engine = app.state.engine
    occupied = BodyAccount(engine.admission, "interactive")
    occupied.receive(engine.settings.queue_bytes - 600)
    response = await client.post("/v1/embed", json={"images": [HUNG, URL]})
    counted = used(app)
    occupied.close()

    assert (429, "memory_full") == (response.status_code, code(response))
    assert engine.settings.queue_bytes - 600 == counted
    assert [True, True] == [body.closed for body in web.bodies]


async def test_bytes_that_are_no_image_are_free_at_once(
    online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb
) -> None:
    """Only the bytes of images stay counted until the request has ended."""
    app, _ = online
    account = BodyAccount(app.state.engine.admission, "interactive")
    deadline = asyncio.get_running_loop().time() + 30
    links = [Link(url) for url in (URL, PAGE, BIG, URL)]
    items = await app.state.links.images(links, Task("embed"), app.state.engine.find(), deadline, account, "id")
    counted = account.size
    account.close()

    assert [PHOTO, PHOTO] == [items[0], items[3]]
    assert len(PHOTO) == counted


async def test_a_stream_waits_for_memory_to_fetch(online: tuple[FastAPI, httpx.AsyncClient], web: FakeWeb) -> None:
    """A line whose image has no room in memory waits, and is fetched again when there is room."""
    app, client = online
    occupied = BodyAccount(app.state.engine.admission, "bulk")
    occupied.receive(app.state.engine.settings.queue_bytes // 2 - 600)
    answer = asyncio.create_task(client.post("/v1/bulk", content=with_image({"image": "IMAGE"}, URL)))
    while not web.bodies or not web.bodies[0].closed:
        await asyncio.sleep(0.01)
    occupied.close()

    assert "embedding" in (await answer).json()
    assert 0 == used(app)


async def test_a_server_that_ends_fetches_nothing(tiny_model: Path) -> None:
    """Nothing is fetched for a server that is not ready, or that shuts down."""
    app, web = create_app(settings_for(tiny_model)), FakeWeb({}, PAGES)
    engine = app.state.engine
    async with running(app):
        engine.abandon()
        with pytest.raises(Draining):
            await Links(engine, web.fetcher()).images(
                [Link(URL)], Task("embed"), engine.find(), 0.0, BodyAccount(engine.admission, "interactive"), "id"
            )

    assert [] == web.dialled


async def test_the_settings_make_the_fetcher(tiny_model: Path) -> None:
    """With VIM_FETCH_HOSTS the application fetches by its own settings: a host that is not listed is refused."""
    app = create_app(settings_for(tiny_model, fetch_hosts="a.example"))
    async with running(app) as client:
        response = await client.post("/v1/embed", json={"images": ["http://127.0.0.1/"]})

    assert (422, "fetch_failed") == (response.status_code, code(response))
