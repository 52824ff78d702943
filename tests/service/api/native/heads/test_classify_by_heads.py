"""Classification by custom heads: every contract can name them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import Head
from service.app import create_app
from tests.service.api.native.heads.conftest import (
    ADMIN,
    DIM,
    LABELS,
    OTHER,
    PHOTO,
    TEXT,
    by_label,
    expected,
    head,
    put,
    read,
)
from tests.service.api.oip.oip_requests import binary_request, elements, outputs_of
from tests.service.conftest import running, settings_for
from tests.tiny import write_tiny_model

pytestmark = pytest.mark.anyio


async def test_one_head_answers_in_predictions(client: httpx.AsyncClient) -> None:
    """With one head, `predictions` are those of the head, and the answer has its fingerprint."""
    body = (await client.post("/v1/classify?head=mine", content=PHOTO)).json()
    wanted = await expected(client, "mine")

    assert pytest.approx(wanted, abs=1e-5) == by_label(body["results"][0]["predictions"])
    assert sorted(wanted, key=lambda label: -wanted[label]) == [
        one["label"] for one in body["results"][0]["predictions"]
    ]
    assert {"mine": (await read(client, "mine")).fingerprint} == body["heads"]
    assert "tiny" == body["model"]["name"]


async def test_without_a_head_nothing_changes(client: httpx.AsyncClient) -> None:
    """A request without heads gets the classes of the model, and no member about heads."""
    body = (await client.post("/v1/classify", content=PHOTO)).json()

    assert {"model", "results", "timings_ms", "batches"} == body.keys()
    assert {"index", "predictions"} == body["results"][0].keys()
    assert 5 == len(body["results"][0]["predictions"])


@pytest.mark.parametrize("form", ["query", "json", "form"])
async def test_several_heads_answer_in_one_pass(client: httpx.AsyncClient, form: str) -> None:
    """Several heads of one request have each their predictions, for each image; a bad image has its error."""
    images = [PHOTO, b"no image", OTHER]
    if form == "query":
        files = [("images", one) for one in images]
        response = await client.post("/v1/classify?head=mine&head=two&top_k=1", files=files)
    elif form == "form":
        files = [("images", one) for one in images]
        response = await client.post("/v1/classify?top_k=1", files=files, data={"head": ["mine", "two"]})
    else:
        texts = [base64.b64encode(one).decode() for one in images]
        response = await client.post("/v1/classify", json={"images": texts, "head": ["mine", "two"], "top_k": 1})
    body = response.json()

    assert (200, ["mine", "two"]) == (response.status_code, list(body["heads"]))
    assert 2 == sum(body["batches"])  # images; one pass each, or one for both
    assert "unsupported_image" == body["results"][1]["error"]["code"]
    for index, image in ((0, PHOTO), (2, OTHER)):
        for name in LABELS:
            wanted = await expected(client, name, image)
            (best,) = body["results"][index]["heads"][name]["predictions"]
            assert best["label"] == max(wanted, key=lambda label: wanted[label])
            assert best["score"] == pytest.approx(wanted[best["label"]], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        ("?head=none", {}, 404, "head_not_found", "there is no head 'none'"),
        ("?head=mine&head=none", {}, 404, "head_not_found", "'none'"),
        ("", {"head": "none"}, 404, "head_not_found", "'none'"),
        ("?model=tiny~none", {}, 404, "head_not_found", "'none'"),
        ("?model=tiny~", {}, 404, "head_not_found", "''"),
        ("?model=other~mine", {}, 404, "model_not_found", "'other'"),
        ("?model=tiny~mine&head=two", {}, 422, "invalid_options", "not both"),
        ("?head=mine", {"head": "two"}, 422, "invalid_options", "in the query and in the body: head"),
        ("?head=mine&head=mine", {}, 422, "invalid_options", "a name is given twice"),
        ("", {"head": [3]}, 422, "invalid_options", "head"),
        ("", {"head": {"mine": 1}}, 422, "invalid_options", "head"),
        ("", {"head": ["mine"] + [f"h{i}" for i in range(64)]}, 422, "invalid_options", "at most 64"),
    ],
)
async def test_wrong_heads(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str, said: str
) -> None:
    """A head that does not exist, or is given wrongly, is an error that names it."""
    response = await client.post(f"/v1/classify{path}", json={"images": [TEXT]} | body)

    assert (status, code) == (response.status_code, response.json()["code"])
    assert said in response.json()["detail"]


async def test_embed_has_no_heads(client: httpx.AsyncClient) -> None:
    """/v1/embed does not take the option; NAME~HEAD gives the embedding of the model."""
    assert 422 == (await client.post("/v1/embed?head=mine", content=PHOTO)).status_code
    plain, named = [await client.post(f"/v1/embed{query}", content=PHOTO) for query in ("", "?model=tiny~mine")]
    assert plain.json()["results"] == named.json()["results"]


async def test_a_head_is_a_model_for_every_contract(client: httpx.AsyncClient) -> None:
    """NAME~HEAD is a model in the native API, Hugging Face's, OpenAI's list and the Open Inference Protocol."""
    wanted = await expected(client, "mine")
    native = (await client.post("/v1/classify?model=tiny~mine", content=PHOTO)).json()["results"][0]["predictions"]
    listed = (await client.post("/models/tiny~mine", content=PHOTO)).json()
    known = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
    info = (await client.get("/info?model=tiny~mine")).json()["model"]

    assert pytest.approx(wanted, abs=1e-5) == by_label(native)
    assert pytest.approx(wanted, abs=1e-5) == by_label(listed)
    assert ["tiny", "tiny~mine", "tiny~two"] == known
    assert 200 == (await client.get("/v1/models/tiny~two")).status_code
    assert 404 == (await client.get("/v1/models/tiny~none")).status_code
    assert ("tiny~mine", 3) == (info["name"], info["classes"])
    assert info["fingerprint"] != (await client.get("/info")).json()["model"]["fingerprint"]
    asked = {"parameters": {"function_to_apply": "softmax"}, "inputs": TEXT}
    assert 200 == (await client.post("/models/tiny~mine", json=asked)).status_code


@pytest.mark.parametrize("model", ["tiny~mine", "tiny-tensor~mine"])
async def test_a_head_in_the_open_inference_protocol(client: httpx.AsyncClient, model: str) -> None:
    """Metadata, scores, labels, classification and embedding of NAME~HEAD; the embedding is that of the model."""
    metadata = (await client.get(f"/v2/models/{model}")).json()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 70, 90, 3), np.uint8)
    if "tensor" in model:
        body, headers = binary_request(pixels.tobytes(), "UINT8", list(pixels.shape))
    else:
        body, headers = binary_request(elements(PHOTO), "BYTES", [1, 1])
    response = await client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    found = outputs_of(response)
    one = await read(client, "mine")
    plain = await client.post(f"/v2/models/{model.removesuffix('~mine')}/infer", content=body, headers=headers)

    assert [-1, 3] == next(out["shape"] for out in metadata["outputs"] if out["name"] == "scores")
    assert model == metadata["name"] == response.json()["model_name"]
    assert (1, 3) == found["scores"].shape
    np.testing.assert_allclose(found["embedding"], outputs_of(plain)["embedding"], atol=1e-6)
    assert [one.labels[int(found["scores"].argmax())]] == [str(label) for label in found["labels"].ravel()]
    for path in ("", "/ready", "/config", "/stats"):
        assert 200 == (await client.get(f"/v2/models/{model}{path}")).status_code
        assert 404 == (await client.get(f"/v2/models/{model}x{path}")).status_code


async def test_bulk(client: httpx.AsyncClient) -> None:
    """/v1/bulk takes heads; each line has the predictions of one, or of each of several."""
    lines = [
        json.dumps({"id": name, "image": base64.b64encode(one).decode()}) for name, one in (("a", PHOTO), ("b", OTHER))
    ]
    body = "\n".join([*lines, '{"image": "bm8="}'])
    one = await client.post("/v1/bulk?op=classify&head=mine", content=body)
    two = await client.post("/v1/bulk?op=classify&head=mine&head=two", content=body)
    answers, both = [[json.loads(line) for line in found.text.splitlines()] for found in (one, two)]

    for index, image in enumerate((PHOTO, OTHER)):
        wanted = await expected(client, "mine", image)
        assert pytest.approx(wanted, abs=1e-5) == by_label(answers[index]["predictions"])
        assert pytest.approx(wanted, abs=1e-5) == by_label(both[index]["heads"]["mine"]["predictions"])
        assert ("ab"[index], index) == (both[index]["id"], both[index]["index"])
    assert "unsupported_image" == both[2]["error"]["code"] == answers[2]["error"]["code"]
    assert 404 == (await client.post("/v1/bulk?op=classify&head=none", content=body)).status_code


async def test_a_head_of_many_classes(client: httpx.AsyncClient) -> None:
    """A head of so many classes that its scores are computed in a thread gives the same answer; so do bad images."""
    model = (await read(client, "mine")).model
    weight = np.random.default_rng(3).normal(size=(2000, DIM)).astype(np.float32)
    many = Head(weight, np.zeros(2000, np.float32), tuple(f"c{index}" for index in range(2000)), model)
    assert 200 == (await put(client, "many", many)).status_code
    wanted = await expected(client, "many")
    files = [("images", one) for one in (PHOTO, b"no image")]
    body = (await client.post("/v1/classify?head=many", files=files)).json()
    refused = await client.post("/v1/classify?head=many", content=b"\x89PNG no image")
    await client.delete("/v1/heads/many", headers=ADMIN)

    best = sorted(wanted, key=lambda label: -wanted[label])[:5]
    assert {label: pytest.approx(wanted[label], abs=1e-5) for label in best} == by_label(
        body["results"][0]["predictions"]
    )
    assert "unsupported_image" == body["results"][1]["error"]["code"] == refused.json()["code"]


async def test_a_model_without_a_classifier_can_have_heads(tmp_path: Path) -> None:
    """A model that only embeds classifies with a head, whether the query or the body names it."""
    model = write_tiny_model(tmp_path / "tiny", num_classes=0)
    app = create_app(settings_for(model, heads_dir=tmp_path / "heads", admin_keys=ADMIN["X-API-Key"]))
    async with running(app) as client:
        fingerprint = (await client.get("/info")).json()["model"]["fingerprint"]
        assert 200 == (await put(client, "mine", head(fingerprint))).status_code
        by_query = await client.post("/v1/classify?head=mine", content=PHOTO)
        by_body = await client.post("/v1/classify", json={"images": [TEXT], "head": "mine"})
        without = await client.post("/v1/classify", content=PHOTO)

    assert 200 == by_query.status_code == by_body.status_code
    assert by_query.json()["results"] == by_body.json()["results"]
    assert (404, "no_classifier") == (without.status_code, without.json()["code"])
