"""/v1/bulk: many images in one request, in order, in bounded memory; it waits where other requests are refused."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.api.native.bulk import IN_FLIGHT, _Stream
from service.app import create_app
from service.errors import UnsupportedImage
from service.images.decode import Decoder, DecodeTimes
from tests.service.conftest import running, settings_for
from tests.tiny import photo

pytestmark = pytest.mark.anyio

TEXTS = [base64.b64encode(photo(seed)).decode() for seed in range(3)]


def lines(*items: Any) -> bytes:
    """Encode items as NDJSON."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def scope() -> dict[str, Any]:
    """The ASGI scope of a request, for tests that send the messages of the client one by one."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/bulk",
        "raw_path": b"/v1/bulk",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("vim", 80),
    }


def found(response: httpx.Response) -> list[dict[str, Any]]:
    """The lines of an answer, as JSON."""
    assert 200 == response.status_code, response.text
    assert "application/x-ndjson" == response.headers["Content-Type"]
    return [json.loads(line) for line in response.text.splitlines()]


async def test_every_line_gets_its_own_in_order(client: httpx.AsyncClient) -> None:
    """Each line gets its own result or error, in order, with its id; results equal the native ones."""
    items: list[Any] = [{"id": f"n{index}", "image": TEXTS[index % 3]} for index in range(80)]
    items[10] = {"id": 10, "image": "AAAA"}
    items[20] = {"image": "https://example.org/a.png"}
    items[30] = {"id": "n30", "picture": TEXTS[0]}
    answers = found(await client.post("/v1/bulk", content=lines(*items)))
    native = (await client.post("/v1/embed", json={"images": TEXTS})).json()["results"]

    assert list(range(80)) == [one["index"] for one in answers]
    assert (10, "unsupported_image") == (answers[10]["id"], answers[10]["error"]["code"])
    assert "url_not_supported" == answers[20]["error"]["code"]
    assert ("malformed_body", "n30") == (answers[30]["error"]["code"], answers[30]["id"])
    for index in (0, 9, 11, 79):
        assert f"n{index}" == answers[index]["id"]
        np.testing.assert_allclose(answers[index]["embedding"], native[index % 3]["embedding"], atol=1e-5)


async def test_lines_wait_for_memory(tiny_model: Path) -> None:
    """A stream waits for memory and never holds more bytes than bulk may have."""
    app = create_app(settings_for(tiny_model, queue_bytes=20_000))
    body = b"\n\n" + lines(*({"id": index, "image": TEXTS[index % 3]} for index in range(40))).rstrip()
    most, admission = 0, app.state.engine.admission
    bulk_bytes = app.state.engine.backend.slots.usage.body_bytes["bulk"]
    receive = admission.receive

    def watched(*arguments: Any) -> None:
        nonlocal most
        receive(*arguments)
        most = max(most, bulk_bytes.own[0])

    admission.receive = watched
    async with running(app) as client:
        answers = found(await client.post("/v1/bulk", content=pieces(body, 1000)))

    assert list(range(40)) == [one["id"] for one in answers]
    assert not [one for one in answers if "error" in one]
    assert len(body) > 5 * most
    assert 5_000 < most <= 10_000
    assert 0 == bulk_bytes.own[0]


async def test_a_line_that_memory_has_no_room_for_ends_the_stream(tiny_model: Path) -> None:
    """A line that never fits into memory ends the stream with an error after the request time-out."""
    app = create_app(settings_for(tiny_model, queue_bytes=6_000, request_timeout_ms=500))
    body = lines({"id": 0, "image": "A" * 4_000})
    async with running(app) as client:
        answers = found(await client.post("/v1/bulk", content=pieces(body, 1000)))

    assert ["body_too_large"] == [one["error"]["code"] for one in answers]
    assert 0 == app.state.engine.backend.slots.usage.body_bytes["bulk"].own[0]


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    """Yield a body in pieces of `size` bytes."""
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(0)


async def test_hostile_lines_harm_only_themselves(client: httpx.AsyncClient) -> None:
    """Deep nesting, too many values and broken JSON fail their own line, and the stream continues."""
    good = json.dumps({"id": "good", "image": TEXTS[0]}).encode()
    deep = b'{"id": ' + b"[" * 300 + b"]" * 300 + b', "image": "AAAA"}'
    many = b'{"id": 1, "x": [' + b"1," * 5000 + b'1], "image": "AAAA"}'
    answers = found(await client.post("/v1/bulk", content=b"\n".join([deep, good, many, b'{"id": "\\ud800', good])))

    codes = [one["error"]["code"] if "error" in one else one["id"] for one in answers]
    assert ["malformed_body", "good", "body_too_large", "malformed_body", "good"] == codes


async def test_a_compressed_stream_is_refused(client: httpx.AsyncClient) -> None:
    """A stream with Content-Encoding is refused with 415 before it begins."""
    response = await client.post("/v1/bulk", content=b"x", headers={"Content-Encoding": "gzip"})

    assert (415, "unsupported_encoding") == (response.status_code, response.json()["code"])


async def test_options_stand_in_the_query(client: httpx.AsyncClient) -> None:
    """Options of both operations are taken from the query; a wrong one is refused before the stream begins."""
    body = lines({"image": TEXTS[0]})
    (classified,) = found(await client.post("/v1/bulk?op=classify&top_k=2", content=body))
    (encoded,) = found(await client.post("/v1/bulk?encoding=base64&pooling=mean", content=body))
    wrong = await client.post("/v1/bulk?op=detect", content=body)

    assert 2 == len(classified["predictions"])
    assert (128, "mean") == (len(base64.b64decode(encoded["embedding"])), encoded["pooling"])
    assert (422, "invalid_options") == (wrong.status_code, wrong.json()["code"])


async def test_blank_lines_and_a_missing_newline(client: httpx.AsyncClient) -> None:
    """Blank lines are skipped, the last line needs no newline, and an empty body has no results."""
    body = b"\n \r\n" + lines({"image": TEXTS[0]}) + b"\n" + lines({"image": TEXTS[1]}).strip()

    assert [0, 1] == [one["index"] for one in found(await client.post("/v1/bulk", content=body))]
    assert [] == found(await client.post("/v1/bulk", content=b""))


async def test_chunks_may_end_anywhere(client: httpx.AsyncClient) -> None:
    """A line may arrive in many chunks, and a chunk may hold many lines."""
    body = lines(*({"image": text} for text in TEXTS))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 777):
            yield body[start : start + 777]

    answers = found(await client.post("/v1/bulk", content=pieces()))

    assert [32] * 3 == [one["dim"] for one in answers]


async def test_many_blank_lines_are_dropped_at_once(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600,000 blank lines are dropped without a step in Python for each, and the images between them are answered."""
    given: list[bytes] = []
    without_blanks = _Stream._without_blanks

    def counted(stream: _Stream, lines: Sequence[bytes]) -> list[bytes]:
        given.extend(lines)
        return without_blanks(stream, lines)

    monkeypatch.setattr(_Stream, "_without_blanks", counted)
    blank = b"\n \r\n" * 100_000
    body = blank + lines({"image": TEXTS[0]}) + blank + lines({"image": TEXTS[1]}) + blank

    assert [0, 1] == [one["index"] for one in found(await client.post("/v1/bulk", content=pieces(body, 65_536)))]
    assert len(given) < 100
    assert 0 == app.state.engine.backend.slots.usage.body_bytes["bulk"].own[0]


@pytest.mark.parametrize("limit", [{"VIM": 400}, {"X-Request-Timeout-Ms": "400"}])
async def test_each_line_has_a_deadline(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]
) -> None:
    """Lines with slow images, and lines that wait behind them to be parsed, get an error when their time is over."""
    own = {"request_timeout_ms": limit["VIM"]} if "VIM" in limit else {}
    app = create_app(settings_for(tiny_model, **own))
    go = threading.Event()

    def slow(*_: Any) -> DecodeTimes:
        go.wait(30)
        raise UnsupportedImage("never in time")

    async with running(app) as client:
        monkeypatch.setattr(Decoder, "decode", slow)
        body = lines(*({"id": index, "image": TEXTS[index % 3]} for index in range(2 * IN_FLIGHT)))
        asking = client.post("/v1/bulk", content=body, headers={} if own else limit)
        answers = found(await asyncio.wait_for(asking, 30))
        go.set()

    assert ["deadline_exceeded"] * 2 * IN_FLIGHT == [one["error"]["code"] for one in answers]
    assert any("parse" in one["error"]["message"] for one in answers)


async def test_failed_lines_are_counted(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failed line is counted once by its reason, and the log line has their number."""
    before = await rejected(client)
    with caplog.at_level(logging.INFO, "vim.request"):
        await client.post("/v1/bulk", content=lines({"image": TEXTS[0]}, {"image": "AAAA"}, {"id": 1}, {"id": 2}))
    after = await rejected(client)

    assert {"unsupported": 1, "invalid": 2} == {name: after[name] - before[name] for name in ("unsupported", "invalid")}
    fields = vars(caplog.records[-1])["fields"]
    assert (4, 3, "ok") == (fields["images"], fields["failed_images"], fields["outcome"])


async def rejected(client: httpx.AsyncClient) -> dict[str, float]:
    """`vim_rejected_total` by reason."""
    page = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r'vim_rejected_total\{reason="(\w+)"\} (\S+)', page)}


async def test_a_line_that_is_too_long_has_its_error(tiny_model: Path) -> None:
    """A line that is too long gets an error in its place; if its end has not arrived, the stream ends."""
    app = create_app(settings_for(tiny_model, max_body_bytes=20_000))
    items = [{"image": TEXTS[0]}, {"image": "A" * 30_000}, {"image": TEXTS[1]}]

    async def pieces() -> AsyncIterator[bytes]:
        for item in items:
            text = lines(item)
            for start in range(0, len(text), 10_000):
                yield text[start : start + 10_000]

    async with running(app) as client:
        whole = found(await client.post("/v1/bulk", content=lines(*items)))
        cut = found(await client.post("/v1/bulk", content=pieces()))

    assert [True, False, True] == ["embedding" in one for one in whole]
    assert [True, False] == ["embedding" in one for one in cut]
    assert {"body_too_large"} == {answers[1]["error"]["code"] for answers in (whole, cut)}


async def test_a_full_queue_is_waited_for(tiny_model: Path) -> None:
    """With a full queue the stream waits, and every image is answered."""
    app = create_app(settings_for(tiny_model, queue_images=2, max_batch=2))
    async with running(app) as client:
        answers = found(await client.post("/v1/bulk", content=lines(*({"image": text} for text in TEXTS * 2))))

    assert ["embedding" in one for one in answers] == [True] * 6


async def test_no_more_is_read_than_is_on_its_way(app: FastAPI, client: httpx.AsyncClient) -> None:
    """A stream reads at most a few lines more than it has answered, so it takes little memory."""
    taken = 0
    most = 0
    answered = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken, most
        taken += 1
        most = max(most, taken - answered)
        return {"type": "http.request", "body": lines({"image": TEXTS[taken % 3]}), "more_body": taken < 100}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal answered
        answered += bool(message.get("body"))

    await app(scope(), receive, send)

    assert (100, 100) == (taken, answered)
    assert most <= IN_FLIGHT + 3  # one waits to be put, one is read ahead, one is sent


async def test_a_client_that_leaves_frees_everything(app: FastAPI, client: httpx.AsyncClient) -> None:
    """When the client disconnects, all slots of its images are freed."""
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        body = lines({"image": TEXTS[0]})
        gone = {"type": "http.disconnect"}
        return gone if sent > 5 else {"type": "http.request", "body": body, "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    before = await rejected(client)
    await app(scope(), receive, send)
    assert 1 == (await rejected(client))["client_gone"] - before["client_gone"]
    async with asyncio.timeout(10):
        while app.state.engine.backend.slots.in_use:
            await asyncio.sleep(0.01)
    assert 200 == (await client.post("/v1/embed", content=photo())).status_code


async def test_an_image_that_is_being_decoded_when_the_drain_time_ends_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is still being decoded at the end of the drain time gets `draining` as its line."""
    app, decode = create_app(settings_for(tiny_model)), Decoder.decode
    begun, go = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> DecodeTimes:
        begun.set()
        go.wait(30)
        return decode(*arguments)

    async with running(app) as client:
        monkeypatch.setattr(Decoder, "decode", slow)
        asking = asyncio.create_task(client.post("/v1/bulk", content=lines({"image": TEXTS[0]})))
        await asyncio.to_thread(begun.wait)
        app.state.engine.abandon()
        go.set()
        (line,) = found(await asyncio.wait_for(asking, 30))

    assert ("draining", 503) == (line["error"]["code"], line["error"]["status"])


async def test_a_client_that_goes_silent_is_given_up(tiny_model: Path) -> None:
    """When a client stops sending, its images are answered and the last line is a body_timeout error."""
    app = create_app(settings_for(tiny_model, body_timeout_ms=300))

    async def pieces() -> AsyncIterator[bytes]:
        yield lines({"image": TEXTS[0]})
        await asyncio.sleep(60)

    async with running(app) as client:
        answers = found(await client.post("/v1/bulk", content=pieces()))

    assert "embedding" in answers[0]
    assert "body_timeout" == answers[1]["error"]["code"]
