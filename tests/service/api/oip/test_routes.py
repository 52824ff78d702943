"""The Open Inference Protocol over HTTP, with recorded requests of its clients."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from service.app import create_app
from tests.service.api.oip.oip_requests import HEADER, INFER, PHOTOS, binary_request, elements, outputs_of
from tests.service.conftest import running, settings_for
from tests.tiny import LABELS, photo, write_tiny_model

pytestmark = pytest.mark.anyio


async def native(client: httpx.AsyncClient, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Scores by class and embeddings from the native endpoints."""
    body = {"images": [base64.b64encode(one).decode() for one in images]}
    classified = (await client.post("/v1/classify", json=body | {"top_k": 7})).json()["results"]
    embedded = (await client.post("/v1/embed", json=body)).json()["results"]
    scores = [[p["score"] for p in sorted(one["predictions"], key=lambda p: p["index"])] for one in classified]
    return np.array(scores), np.array([one["embedding"] for one in embedded])


async def test_server_metadata_health_and_the_trailing_slash(client: httpx.AsyncClient) -> None:
    """The probes have bodies, which KServe's client parses; the metadata is at /v2 and at /v2/."""
    assert {"live": True} == (await client.get("/v2/health/live")).json()
    assert {"ready": True, "live": True} == (await client.get("/v2/health/ready")).json()
    for path in ("/v2", "/v2/"):
        about = (await client.get(path)).json()
        assert "vim-server" == about["name"]
        assert {"binary_tensor_data", "classification", "model_configuration", "statistics"} == set(about["extensions"])


@pytest.mark.parametrize("base", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
async def test_model_metadata_and_config(client: httpx.AsyncClient, base: str) -> None:
    """Metadata has types and shapes, with -1 for a variable dimension; the config has no batch dimension."""
    about = (await client.get(base)).json()
    config = (await client.get(base + "/config")).json()

    assert ("tiny", ["1"]) == (about["name"], about["versions"])
    assert [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}] == about["inputs"]
    assert {"scores": [-1, 7], "embedding": [-1, 32], "labels": [-1, 1]} == {
        one["name"]: one["shape"] for one in about["outputs"]
    }
    assert [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}] == config["input"]
    assert {"name": "scores", "data_type": "TYPE_FP32", "dims": [7]} in config["output"]
    assert 64 == config["max_batch_size"]
    assert {"name": "tiny", "ready": True} == (await client.get(base + "/ready")).json()


async def test_the_tensor_name_takes_pixels(client: httpx.AsyncClient) -> None:
    """NAME-tensor takes pixels of any height and width."""
    about = (await client.get("/v2/models/tiny-tensor")).json()
    config = (await client.get("/v2/models/tiny-tensor/config")).json()

    assert [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}] == about["inputs"]
    assert [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}] == config["input"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_encoded_images_equal_the_native_answer(
    client: httpx.AsyncClient, binary_in: bool, binary_out: bool
) -> None:
    """Encoded images, raw or JSON in both directions, give the native results; by default all outputs."""
    parameters = {"parameters": {"binary_data_output": binary_out}}
    if binary_in:
        body, headers = binary_request(elements(*PHOTOS), "BYTES", [3, 1], **parameters)
    else:
        data = [base64.b64encode(one).decode() for one in PHOTOS]
        tensor = {"name": "image", "shape": [3, 1], "datatype": "BYTES", "data": data}
        body, headers = json.dumps({"inputs": [tensor]} | parameters).encode(), {}
    response = await client.post(INFER, content=body, headers=headers)
    found = outputs_of(response)
    scores, embeddings = await native(client, PHOTOS)

    np.testing.assert_allclose(found["scores"], scores, atol=1e-6)
    np.testing.assert_allclose(found["embedding"], embeddings, atol=1e-6)
    assert [[LABELS[best]] for best in scores.argmax(1)] == found["labels"].tolist()
    assert ("application/octet-stream" if binary_out else "application/json") == response.headers["Content-Type"]


@pytest.mark.parametrize("binary_in", [True, False])
async def test_pixels_are_preprocessed_like_a_decoded_image(client: httpx.AsyncClient, binary_in: bool) -> None:
    """The pixels of a lossless file give the same results as the file."""
    image = photo(4, size=(90, 70), kind="PNG")
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[None]
    if binary_in:
        body, headers = binary_request(pixels.tobytes(), "UINT8", list(pixels.shape))
    else:
        tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.tolist()}
        body, headers = json.dumps({"inputs": [tensor]}).encode(), {}
    found = outputs_of(await client.post("/v2/models/tiny-tensor/infer", content=body, headers=headers))
    scores, embeddings = await native(client, [image])

    np.testing.assert_allclose(found["scores"], scores, atol=1e-6)
    np.testing.assert_allclose(found["embedding"], embeddings, atol=1e-6)


async def test_the_raw_binary_request_is_the_bare_image(client: httpx.AsyncClient) -> None:
    """With a header length of 0 the body is one image, and the answer has raw outputs; versions/1 is accepted."""
    response = await client.post(
        "/v2/models/tiny/versions/1/infer", content=PHOTOS[0], headers={HEADER: "0", "Content-Type": "image/png"}
    )
    scores, _ = await native(client, PHOTOS[:1])

    np.testing.assert_allclose(outputs_of(response)["scores"], scores, atol=1e-6)
    assert int(response.headers[HEADER]) < len(response.content)


async def test_the_recorded_requests_of_kserve_and_perf_analyzer(client: httpx.AsyncClient) -> None:
    """An empty id is returned, unknown members are ignored, and each output has its own format."""
    outputs = [
        {"name": "scores", "parameters": {"binary_data": True}},
        {"name": "embedding", "parameters": {"binary_data": False}},
    ]
    body, headers = binary_request(elements(PHOTOS[0]), "BYTES", [1, 1], id="", outputs=outputs, model_name="tiny")
    response = await client.post(INFER, content=body, headers=headers | {"Content-Type": "application/octet-stream"})
    head = json.loads(response.content[: int(response.headers[HEADER])])

    assert "" == head["id"]
    assert ("tiny", "1") == (head["model_name"], head["model_version"])
    assert ["scores", "embedding"] == [one["name"] for one in head["outputs"]]
    assert 28 == head["outputs"][0]["parameters"]["binary_data_size"]
    assert 32 == len(head["outputs"][1]["data"])


@pytest.mark.parametrize("binary", [True, False])
async def test_classification_is_value_index_label(client: httpx.AsyncClient, binary: bool) -> None:
    """The classification parameter gives `value:index:label` of the k best classes, best first."""
    outputs = [{"name": "scores", "parameters": {"classification": 3, "binary_data": binary}}]
    body, headers = binary_request(elements(*PHOTOS[:2]), "BYTES", [2, 1], outputs=outputs)
    found = outputs_of(await client.post(INFER, content=body, headers=headers))["scores"]
    scores, _ = await native(client, PHOTOS[:2])
    best = np.argsort(-scores[1])[:3]

    assert (2, 3) == found.shape
    assert [f"{scores[1][i]:f}:{i}:{LABELS[i]}" for i in best] == found[1].tolist()


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_requests(client: httpx.AsyncClient, coding: str, pack: Any) -> None:
    """A compressed request is accepted; its header length counts bytes before compression."""
    body, headers = binary_request(elements(PHOTOS[0]), "BYTES", [1])
    response = await client.post(INFER, content=pack(body), headers=headers | {"Content-Encoding": coding})

    assert {"scores", "embedding", "labels"} == set(outputs_of(response))


async def test_the_timeout_parameter_is_a_deadline_in_microseconds(tiny_model: Path) -> None:
    """The parameter timeout is a deadline in microseconds, shorter than that of the server."""
    app = create_app(settings_for(tiny_model))
    body, headers = binary_request(
        elements(photo(size=(2000, 2000))), "BYTES", [1], parameters={"timeout": 500, "priority": 1}
    )
    async with running(app) as client:
        response = await client.post(INFER, content=body, headers=headers)

    assert 504 == response.status_code


@pytest.mark.parametrize(("priority", "request_class"), [(0, "interactive"), (1, "interactive"), (2, "bulk")])
async def test_a_low_priority_is_bulk(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, priority: int, request_class: str
) -> None:
    """Priority 2 and lower is bulk; 1 (the highest) and 0 (the default) are interactive."""
    body, headers = binary_request(elements(PHOTOS[0]), "BYTES", [1], parameters={"priority": priority})
    with caplog.at_level(logging.INFO, "vim.request"):
        outputs_of(await client.post(INFER, content=body, headers=headers))
    (fields,) = (vars(record)["fields"] for record in caplog.records if record.name == "vim.request")

    assert ("oip", request_class) == (fields["api"], fields["class"])


async def test_statistics_count_what_was_asked(tiny_model: Path) -> None:
    """Statistics count requests, failures, images and forward passes for each of the two names."""
    app = create_app(settings_for(tiny_model))
    body, headers = binary_request(elements(*PHOTOS), "BYTES", [3, 1])
    async with running(app) as client:
        await client.post(INFER, content=body, headers=headers)
        await client.post(INFER, content=b"junk")
        (one,) = (await client.get("/v2/models/tiny/stats")).json()["model_stats"]
        every = (await client.get("/v2/models/stats")).json()["model_stats"]

    counts = one["inference_stats"]
    assert (1, 1, 3) == (counts["success"]["count"], counts["fail"]["count"], one["inference_count"])
    assert 1 <= one["execution_count"] <= 3
    assert 3 == sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in one["batch_stats"])
    assert counts["success"]["ns"] >= counts["compute_infer"]["ns"] > 0
    assert {"tiny": 3, "tiny-tensor": 0} == {each["name"]: each["inference_count"] for each in every}


async def test_requests_are_counted_under_their_contract(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Metrics count requests under api oip and the requested op; an unknown model counts as other."""
    outputs = [{"name": "embedding"}]
    body, headers = binary_request(elements(PHOTOS[0]), "BYTES", [1], outputs=outputs)
    await asyncio.gather(client.post(INFER, content=body, headers=headers), client.post("/v2/models/nope/infer"))
    page = (await client.get("/metrics")).text

    assert 'vim_requests_total{api="oip",code="200",model="tiny",op="embed"}' in page
    assert 'vim_requests_total{api="oip",code="404",model="other",op="classify"} ' in page


async def test_a_model_without_a_head_has_one_output(tmp_path: Path) -> None:
    """A model without a classifier head has one output, the embedding, and returns it by default."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "headless", num_classes=0)))
    body, headers = binary_request(elements(PHOTOS[0]), "BYTES", [1])
    async with running(app) as client:
        about = (await client.get("/v2/models/headless")).json()
        found = outputs_of(await client.post("/v2/models/headless/infer", content=body, headers=headers))

    assert ["embedding"] == [one["name"] for one in about["outputs"]]
    assert ["embedding"] == list(found)


async def test_before_the_model_is_loaded(tiny_model: Path) -> None:
    """Before the model is loaded the server is live and has metadata, and the model answers 503."""
    transport = httpx.ASGITransport(create_app(settings_for(tiny_model)))
    async with httpx.AsyncClient(transport=transport, base_url="http://vim") as early:
        statuses = {
            path: (await early.get(path)).status_code
            for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready")
        }
        refused = await early.post(INFER, content=b"{}")

    assert {"/v2": 200, "/v2/health/live": 200} | dict.fromkeys(list(statuses)[2:], 503) == statuses
    assert 503 == refused.status_code
    assert isinstance(refused.json()["error"], str)
