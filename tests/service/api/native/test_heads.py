"""Custom heads over HTTP: an administrator adds them, and every contract can classify with them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import MOST_BYTES, Head
from service.app import create_app
from tests.service.api.oip.oip_requests import binary_request, elements, outputs_of
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

ADMIN = {"X-API-Key": "admin-key-of-the-test"}
PHOTO, OTHER = photo(1), photo(2)
TEXT = base64.b64encode(PHOTO).decode()
DIM = 32
LABELS = {"mine": ("cat", "dog", "fish"), "two": ("yes", "no")}


@pytest.fixture(scope="module")
async def client(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with the heads `mine` and `two`."""
    heads = tmp_path_factory.mktemp("heads")
    app = create_app(settings_for(tiny_model, heads_dir=heads, admin_keys=ADMIN["X-API-Key"], max_batch=4))
    async with running(app) as client:
        fingerprint = (await client.get("/info")).json()["model"]["fingerprint"]
        for seed, name in enumerate(LABELS):
            assert 200 == (await put(client, name, head(fingerprint, name, seed))).status_code
        yield client


def head(fingerprint: str, name: str = "mine", seed: int = 0) -> Head:
    """A head of random weights for the model with this fingerprint."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(len(LABELS[name]), DIM)).astype(np.float32)
    return Head(weight, random.normal(size=len(weight)).astype(np.float32), LABELS[name], fingerprint, {"seed": seed})


async def put(client: httpx.AsyncClient, name: str, given: Head | bytes, **headers: str) -> httpx.Response:
    """Send a head with the key of an administrator."""
    data = given if isinstance(given, bytes) else given.to_bytes()
    return await client.put(f"/v1/heads/{name}", content=data, headers=headers or ADMIN)


async def read(client: httpx.AsyncClient, name: str) -> Head:
    """The head as the server has it."""
    return Head.read((await client.get(f"/v1/heads/{name}", headers=ADMIN)).content)


async def expected(client: httpx.AsyncClient, name: str, image: bytes = PHOTO) -> dict[str, float]:
    """The softmax of the head on the raw embedding, by label."""
    one = await read(client, name)
    embedding = (await client.post("/v1/embed?normalize=false", content=image)).json()["results"][0]["embedding"]
    exponentials = np.exp(one.weight.astype(np.float64) @ embedding + one.bias)
    return dict(zip(one.labels, exponentials / exponentials.sum(), strict=True))


def by_label(predictions: Any) -> dict[str, float]:
    """The predictions of an answer."""
    return {one["label"]: one["score"] for one in predictions}


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


async def test_the_list(client: httpx.AsyncClient) -> None:
    """The list has each head with its labels, its model and how it was taught."""
    body = (await client.get("/v1/heads", headers=ADMIN)).json()
    mine = body["heads"][0]

    assert ["mine", "two"] == [one["name"] for one in body["heads"]]
    assert (["cat", "dog", "fish"], ["tiny"], {"seed": 0}) == (mine["labels"], mine["served_by"], mine["recipe"])
    assert {} == body["damaged"]


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


async def test_a_replaced_head_is_used_by_the_next_request(client: httpx.AsyncClient) -> None:
    """After PUT has answered, a request uses the new head; after DELETE there is none."""
    model = (await read(client, "mine")).model
    for seed in (5, 6):
        new = head(model, "mine", seed)
        info = (await put(client, "changing", new)).json()
        body = (await client.post("/v1/classify?head=changing", content=PHOTO)).json()
        assert {"changing": info["fingerprint"]} == body["heads"]
        assert pytest.approx(await expected(client, "changing"), abs=1e-5) == by_label(
            body["results"][0]["predictions"]
        )
    response = await client.delete("/v1/heads/changing", headers=ADMIN)

    assert (204, b"") == (response.status_code, response.content)
    assert 404 == (await client.post("/v1/classify?head=changing", content=PHOTO)).status_code
    assert 404 == (await client.delete("/v1/heads/changing", headers=ADMIN)).status_code


async def test_a_bad_upload_changes_nothing(client: httpx.AsyncClient) -> None:
    """A file that is no head, too large, or for another model is refused, and the old head still serves."""
    before = (await client.get("/v1/heads/mine", headers=ADMIN)).content
    fingerprint = Head.read(before).model
    wrong_size = Head(np.zeros((2, DIM + 1), np.float32), np.zeros(2, np.float32), ("a", "b"), fingerprint)
    cases: list[tuple[Head | bytes, int, str]] = [
        (b"", 400, "empty_body"),
        (PHOTO, 422, "invalid_head"),
        (before[:-4], 422, "invalid_head"),
        (head("0" * 12), 422, "head_mismatch"),
        (bytes(MOST_BYTES + 1), 413, "body_too_large"),
        (wrong_size, 422, "head_mismatch"),
    ]
    for given, status, code in cases:
        response = await put(client, "mine", given)
        assert (status, code) == (response.status_code, response.json()["code"])
    assert 422 == (await put(client, "a~b", before)).status_code

    assert before == (await client.get("/v1/heads/mine", headers=ADMIN)).content


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/mine"), ("PUT", "/mine"), ("DELETE", "/mine")])
async def test_only_administrators(client: httpx.AsyncClient, method: str, path: str) -> None:
    """Without the key of an administrator every operation on heads is 401."""
    for headers in ({}, {"X-API-Key": "another-key-of-the-test"}):
        response = await client.request(
            method, f"/v1/heads{path}", headers=headers, content=b"x" if method == "PUT" else None
        )
        assert (401, "unauthorized") == (response.status_code, response.json()["code"])


async def test_a_head_of_another_model_is_refused(client: httpx.AsyncClient) -> None:
    """A file of another model in the directory is refused by its fingerprint, in every contract, and is not listed."""
    directory: Path = client._transport.app.state.engine.settings.heads_dir  # type: ignore[attr-defined]
    (directory / "foreign.safetensors").write_bytes(head("0" * 12).to_bytes())
    try:
        asked = ["/v1/classify?head=foreign", "/v1/classify?model=tiny~foreign", "/models/tiny~foreign"]
        found = [await client.post(path, content=PHOTO) for path in asked]
        found.append(await client.get("/v2/models/tiny~foreign"))
        known = (await client.get("/v1/models")).json()["data"]
    finally:
        (directory / "foreign.safetensors").unlink()

    assert {(422, "head_mismatch")} == {(one.status_code, one.json().get("code", "head_mismatch")) for one in found}
    assert all("fingerprint 000000000000" in one.text for one in found)
    assert "tiny~foreign" not in [one["id"] for one in known]


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


async def test_another_method_is_told_those_that_exist(client: httpx.AsyncClient) -> None:
    """A method that the path does not have is 405, with the methods that it has."""
    response = await client.post("/v1/heads/mine", headers=ADMIN)

    assert (405, "GET, HEAD, PUT, DELETE") == (response.status_code, response.headers["Allow"])


@pytest.mark.parametrize("without", ["heads_dir", "admin_keys"])
async def test_switched_off(tiny_model: Path, tmp_path: Path, without: str) -> None:
    """Without a directory or a key of an administrator the paths do not exist; the error names the settings."""
    settings: dict[str, Any] = {"heads_dir": tmp_path, "admin_keys": ADMIN["X-API-Key"]}
    del settings[without]
    app = create_app(settings_for(tiny_model, **settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vim") as client:
        found = [await client.get("/v1/heads", headers=ADMIN), await put(client, "mine", b"x")]

    assert [404, 404] == [one.status_code for one in found]
    assert all("VIM_HEADS_DIR" in one.json()["detail"] for one in found)


async def test_replacing_under_load_mixes_nothing(client: httpx.AsyncClient) -> None:
    """While a head is replaced, every answer is that of the version whose fingerprint it has."""
    model = (await read(client, "mine")).model
    versions = [head(model, "mine", seed) for seed in range(20, 28)]
    values: dict[str, dict[str, float]] = {}
    for one in versions:
        await put(client, "load", one)
        values[one.fingerprint] = await expected(client, "load")
    done = asyncio.Event()

    async def ask() -> set[str]:
        seen = set()
        while not done.is_set():
            body = (await client.post("/v1/classify?head=load", content=PHOTO)).json()
            (fingerprint,) = body["heads"].values()
            assert pytest.approx(values[fingerprint], abs=1e-5) == by_label(body["results"][0]["predictions"])
            seen.add(fingerprint)
            await asyncio.sleep(0)  # a joined request may not wait for anything, in this process
        return seen

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask()) for _ in range(4)]
        for one in versions:
            assert 200 == (await put(client, "load", one)).status_code
            await client.post("/v1/classify?head=load", content=OTHER)
        done.set()
    await client.delete("/v1/heads/load", headers=ADMIN)

    assert len(set[str]().union(*(one.result() for one in asking))) > 1
