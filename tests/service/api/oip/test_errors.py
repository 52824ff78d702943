"""Errors of the Open Inference Protocol: strings in plain JSON, with the statuses that its clients expect."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import httpx
import pytest

from tests.service.api.oip.oip_requests import HEADER, INFER, PHOTOS, binary_request, elements

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "tensor", "status", "says"),
    [
        ("/v2/models/nope/infer", {}, 404, "Request for unknown model: 'nope' is not found"),
        ("/v2/models/tiny/versions/2/infer", {}, 404, "version '2' is not found"),
        (INFER, {"datatype": "FP32", "data": [0.5]}, 400, "BYTES to tiny, or pixels of any size as UINT8"),
        ("/v2/models/tiny-tensor/infer", {"datatype": "FP32", "data": [0.5]}, 400, "as BYTES to tiny, or"),
        ("/v2/models/tiny-tensor/infer", {}, 400, "tiny-tensor takes UINT8, not BYTES"),
        (INFER, {"name": "pixels"}, 400, "one input, 'image'; the request has 'pixels'"),
        (INFER, {"shape": [2]}, 400, "shape [2] and 1 elements"),
        (INFER, {"data": ["AAAA"]}, 415, "not an image"),
        (INFER, {"data": ["http://example.org/a.png"]}, 400, "URLs are not fetched"),
        (INFER, {"shape": [65], "data": ["AAAA"] * 65}, 413, "VIM_MAX_IMAGES"),
        (INFER, {"shape": [0], "data": []}, 400, "no image"),
        (INFER, {"parameters": {"shared_memory_region": "r"}}, 400, "shared memory"),
    ],
)
async def test_errors_are_strings_in_plain_json(
    client: httpx.AsyncClient, path: str, tensor: dict[str, Any], status: int, says: str
) -> None:
    """Errors have a string in `error` and exactly application/json, as tritonclient and KServe require."""
    good = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PHOTOS[0]).decode()]}
    response = await client.post(path, content=json.dumps({"inputs": [good | tensor]}))

    assert (status, "application/json") == (response.status_code, response.headers["Content-Type"])
    assert isinstance(response.json()["error"], str)
    assert says in response.json()["error"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"outputs": [{"name": "logits"}]}, "there is no output 'logits'; the outputs are scores, embedding, labels"),
        ({"outputs": [{"name": "embedding", "parameters": {"classification": 2}}]}, "for the output scores"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"inputs": []}, "the request has none"),
    ],
)
async def test_wrong_outputs_and_parameters_are_400(client: httpx.AsyncClient, more: dict[str, Any], says: str) -> None:
    """A wrong output or parameter is refused with 400, and the error names it."""
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}]} | more
    response = await client.post(INFER, json=body)

    assert 400 == response.status_code
    assert says in response.json()["error"]


@pytest.mark.parametrize("size", ["-1", "x", "1e3", "9" * 20])
async def test_a_wrong_header_size_is_400(client: httpx.AsyncClient, size: str) -> None:
    """Inference-Header-Content-Length must be a number of bytes; else the request is refused with 400."""
    response = await client.post(INFER, content=b"{}", headers={HEADER: size})

    assert 400 == response.status_code
    assert HEADER in response.json()["error"]


@pytest.mark.parametrize(
    ("coding", "body", "status", "says"),
    [
        ("br", b"{}", 415, "br"),
        ("gzip", b"no gzip", 400, "gzip"),
        ("gzip", gzip.compress(bytes(30_000_000)), 413, "VIM_MAX_BODY_BYTES"),
    ],
)
async def test_wrong_compression_is_refused(
    client: httpx.AsyncClient, coding: str, body: bytes, status: int, says: str
) -> None:
    """An unknown encoding, invalid gzip data, and a body too large after decompression are refused."""
    response = await client.post(INFER, content=body, headers={"Content-Encoding": coding})

    assert (status, "application/json") == (response.status_code, response.headers["Content-Type"])
    assert says in response.json()["error"]


async def test_errors_of_the_router_are_strings_too(client: httpx.AsyncClient) -> None:
    """A wrong method and an unknown path also get an error whose `error` is a string."""
    answers = [await client.get(INFER), await client.get("/v2/nowhere")]

    assert [(405, True), (404, True)] == [(one.status_code, isinstance(one.json()["error"], str)) for one in answers]


async def test_one_bad_image_fails_the_request_naming_it(client: httpx.AsyncClient) -> None:
    """One bad image fails the whole request, and the error has its index."""
    body, headers = binary_request(elements(PHOTOS[0], b"junk"), "BYTES", [2, 1])
    response = await client.post(INFER, content=body, headers=headers)

    assert 415 == response.status_code
    assert response.json()["error"].startswith("image 1: ")
