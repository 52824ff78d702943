"""Errors: their proposals, their counts, and the log lines of internal errors."""

from __future__ import annotations

import base64
import gzip
import logging
import re
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.engine.engine import Engine
from tests.service.api.oip.oip_requests import INFER, binary_request, elements
from tests.tiny import photo

pytestmark = pytest.mark.anyio

PHOTO, PNG = photo(1), photo(1, kind="PNG")
TEXT = base64.b64encode(PHOTO).decode()
MARK = b"\xef\xbb\xbf"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def message(answer: httpx.Response) -> str:
    """The text of an error, in the format of any contract."""
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/vectors", "/vectorize", INFER])
async def test_a_path_for_json_says_so_to_whoever_sends_a_file(client: httpx.AsyncClient, path: str) -> None:
    """A file sent to a path that takes JSON gets an error that says what it takes, and which paths take files."""
    answer = await client.post(path, content=PNG)

    assert 415 == answer.status_code
    assert "this path takes JSON" in message(answer)
    assert "/v1/classify and /v1/embed take image files" in message(answer)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embed", "/", "/v1/embeddings", "/vectors", INFER])
async def test_a_file_that_curl_has_changed_is_recognised(client: httpx.AsyncClient, path: str) -> None:
    """`curl -d @photo` leaves out line breaks and zero bytes; the error proposes --data-binary."""
    for file in (PNG, PHOTO):
        changed = file.translate(None, b"\r\n\0")
        answer = await client.post(path, content=changed, headers=FORM)

        assert 415 == answer.status_code
        assert "use --data-binary" in message(answer)
        assert "--data-binary" not in message(await client.post(path, content=changed))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"images": [TEXT]}),
        ("/v1/embeddings", {"input": [TEXT]}),
        ("/", {"inputs": TEXT}),
        ("/vectors", {"image": TEXT}),
        ("/vectorize", {"images": [TEXT]}),
        (INFER, {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]}),
    ],
)
async def test_a_byte_order_mark_and_gzip_change_nothing(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """A byte order mark before the JSON is ignored by every contract; two gzip members are one body."""
    content = MARK + httpx.Request("POST", "http://x", json=body).content
    halves = gzip.compress(content[:50]) + gzip.compress(content[50:])

    assert 200 == (await client.post(path, content=content)).status_code
    assert 200 == (await client.post(path, content=halves, headers={"Content-Encoding": "gzip"})).status_code


async def test_the_lines_of_bulk_follow_the_same_rules(client: httpx.AsyncClient) -> None:
    """A byte order mark before the first line is ignored, and a file instead of lines is explained."""
    good = await client.post("/v1/bulk", content=MARK + b'{"id": 1, "image": "%s"}' % TEXT.encode())
    bad = (await client.post("/v1/bulk", content=PHOTO)).text.splitlines()[0]

    assert (1, 32) == (good.json()["id"], good.json()["dim"])
    assert "a line must be" in bad
    assert "/v1/embed take image files" in bad


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embeddings", "/", "/vectors", INFER])
async def test_nothing_compressed_is_an_empty_body(client: httpx.AsyncClient, path: str) -> None:
    """The gzip of an empty body is an empty body."""
    answer = await client.post(path, content=gzip.compress(b""), headers={"Content-Encoding": "gzip"})

    assert 400 == answer.status_code
    assert "the body is empty" in message(answer)


async def test_an_option_given_twice_is_refused(client: httpx.AsyncClient) -> None:
    """An option that occurs twice in the query is refused with 422 by every contract that has options."""
    for path in ("/v1/classify", "/v1/bulk", "/"):
        answer = await client.post(f"{path}?top_k=2&top_k=3", content=PHOTO)
        assert (422, True) == (answer.status_code, "more than once in the query: top_k" in message(answer))


async def test_the_format_with_the_higher_quality_is_sent(client: httpx.AsyncClient) -> None:
    """/v1/embed sends raw floats only if the Accept header prefers them."""
    for accept, raw in (
        ("APPLICATION/octet-stream", True),
        ("application/json, application/octet-stream;q=0.1", False),
    ):
        answer = await client.post("/v1/embed", content=PHOTO, headers={"Accept": accept})
        assert raw == (answer.headers["Content-Type"] == "application/octet-stream")


async def rejected(client: httpx.AsyncClient) -> float:
    """How many requests or images were rejected so far."""
    page = (await client.get("/metrics")).text
    return sum(float(value) for value in re.findall(r"^vim_rejected_total\S+ (\S+)$", page, re.MULTILINE))


async def test_a_bad_image_is_counted_once(client: httpx.AsyncClient) -> None:
    """A bad image among good ones counts once, whether it has a place in the answer or fails its request."""
    oip, headers = binary_request(elements(PHOTO, b"junk"), "BYTES", [2, 1])
    bad = base64.b64encode(b"no image, but long enough").decode()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/classify", {"json": {"images": [TEXT, bad]}}),
        ("/v1/embed", {"json": {"images": [TEXT, bad]}}),
        ("/v1/embed", {"json": {"images": [TEXT, bad]}, "headers": {"Accept": "application/octet-stream"}}),
        ("/v1/classify", {"json": {"images": [bad, bad]}}),
        ("/", {"json": {"inputs": [TEXT, bad]}}),
        ("/v1/embeddings", {"json": {"input": [{"image": TEXT}, {"image": bad}]}}),
        ("/vectorize", {"json": {"images": [TEXT, bad]}}),
        (INFER, {"content": oip, "headers": headers}),
        ("/v1/bulk", {"content": b'{"image": "%s"}' % bad.encode()}),
    ]
    for path, arguments in requests:
        before = await rejected(client)
        await client.post(path, **arguments)
        assert 1 == await rejected(client) - before, path


@pytest.mark.parametrize(("path", "status"), [("/v1/classify", 500), ("/v1/bulk", 200)])
async def test_the_log_of_an_internal_error_has_the_id_of_its_request(
    app: FastAPI,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
) -> None:
    """The answer to an unforeseen error refers to the log, so the line of the log has the id of the request.

    A stream has begun with 200 and is cut off.
    """

    async def broken(*_: Any) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "infer", broken)
    line = b'{"image": "%s"}' % TEXT.encode()
    with caplog.at_level(logging.INFO):
        content = line if path == "/v1/bulk" else PHOTO
        answer = await client.post(path, content=content, headers={"X-Request-ID": "mine"})
    (record,) = [one for one in caplog.records if one.name == "vim.app"]
    (request,) = [one for one in caplog.records if one.name == "vim.request"]

    assert status == answer.status_code
    assert {"status": status, "outcome": "internal_error"}.items() <= vars(request)["fields"].items()
    assert {"request_id": "mine"} == vars(record)["fields"]
    assert record.exc_info
