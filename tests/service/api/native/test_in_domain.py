"""`in_domain` and `reject`: whether an image is like those that a model or a head was taught with."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import model
from model.heads import domain_file
from model.heads.domain import Domain
from model.heads.head import Head
from service.app import create_app
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

DIM = 32
PHOTOS = [photo(seed) for seed in range(4)]


def domain(scale: float) -> Domain:
    """A domain around zero: the distance is `scale` times the squared length of the features."""
    zeros = np.zeros((1, DIM), np.float32)
    arrays = {"directions": zeros, "offsets": [0.0], "centers": zeros, "constants": [0.0]}
    return Domain.of(arrays | {"rest": [scale], "table": np.linspace(0, 60, 241)})


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose model has a domain, with a head that has another, and one that has none."""
    directory = tmp_path_factory.mktemp("domain")
    tiny = write_tiny_model(directory / "tiny")
    domain_file.save(tiny / "in_domain.json", model.load(tiny, device="cpu").fingerprint, domain(1))
    (directory / "heads").mkdir()
    app = create_app(settings_for(tiny, heads_dir=directory / "heads", max_batch=4))
    async with running(app) as client:
        fingerprint = (await client.get("/info")).json()["model"]["fingerprint"]
        for name, own in (("knows", domain(0.5)), ("blind", None)):
            weight = np.eye(2, DIM, dtype=np.float32)
            head = Head(weight, np.zeros(2, np.float32), ("a", "b"), fingerprint, domain=own)
            (directory / "heads" / f"{name}.safetensors").write_bytes(head.to_bytes())
        yield client


async def expected(client: httpx.AsyncClient, image: bytes, scale: float = 1) -> float:
    """The share by its definition, on the raw embedding."""
    embedding = (await client.post("/v1/embed?normalize=false", content=image)).json()["results"][0]["embedding"]
    return float(domain(scale).score(np.array([embedding], np.float32))[0])


async def test_each_result_has_the_share(client: httpx.AsyncClient) -> None:
    """Each image has its own share, also in one request with others; a bad image has only its error."""
    wanted = [await expected(client, one) for one in PHOTOS]
    files = [("images", one) for one in [*PHOTOS, b"no image"]]
    body = (await client.post("/v1/classify", files=files)).json()
    singly = await asyncio.gather(*(client.post("/v1/classify", content=one) for one in PHOTOS))

    assert 2 < len({*wanted, 0.0, 1.0})
    assert pytest.approx(wanted, abs=1e-4) == [one["in_domain"] for one in body["results"][:4]]
    assert pytest.approx(wanted, abs=1e-4) == [one.json()["results"][0]["in_domain"] for one in singly]
    assert {"index", "error"} == body["results"][4].keys()
    assert "label" not in body["results"][0]


async def test_reject_gives_a_label_or_null(client: httpx.AsyncClient) -> None:
    """With `reject` a result has the best label, or null if the share is below it. The predictions stay."""
    for image in PHOTOS:
        share = await expected(client, image)
        for reject, rejected in ((0, False), (max(0.0, share - 0.01), False), (min(1.0, share + 0.01), share < 1)):
            answer = await client.post(f"/v1/classify?reject={reject}", content=image)
            (result,) = answer.json()["results"]
            assert (None if rejected else result["predictions"][0]["label"]) == result["label"]
            assert 5 == len(result["predictions"])


async def test_heads_have_their_own(client: httpx.AsyncClient) -> None:
    """A head has its own share; one without a domain has none, and then `reject` is an error that names it."""
    one = (await client.post("/v1/classify?head=knows&reject=0", content=PHOTOS[0])).json()["results"][0]
    both = (await client.post("/v1/classify?head=knows&head=blind", content=PHOTOS[0])).json()["results"][0]["heads"]
    refused = await client.post("/v1/classify?head=knows&head=blind&reject=0.1", content=PHOTOS[0])

    assert (
        pytest.approx(await expected(client, PHOTOS[0], 0.5), abs=1e-4)
        == one["in_domain"]
        == both["knows"]["in_domain"]
    )
    assert one["predictions"][0]["label"] == one["label"]
    assert {"predictions"} == both["blind"].keys()
    assert (400, "unsupported_input") == (refused.status_code, refused.json()["code"])
    assert "the head 'blind' does not have" in refused.json()["detail"]


@pytest.mark.parametrize("reject", ["-0.1", "1.1", "nan", "x", ""])
async def test_a_wrong_reject(client: httpx.AsyncClient, reject: str) -> None:
    """`reject` is a number from 0 to 1."""
    assert 422 == (await client.post(f"/v1/classify?reject={reject}", content=PHOTOS[0])).status_code


async def test_bulk(client: httpx.AsyncClient) -> None:
    """A stream has the share and the label in each line."""
    lines = [json.dumps({"image": base64.b64encode(one).decode()}) for one in PHOTOS]
    answer = await client.post("/v1/bulk?op=classify&reject=0.5&top_k=1", content="\n".join(lines))
    found = [json.loads(line) for line in answer.text.splitlines()]

    for image, one in zip(PHOTOS, found, strict=True):
        share = await expected(client, image)
        assert pytest.approx(share, abs=1e-4) == one["in_domain"]
        assert (one["predictions"][0]["label"] if share >= 0.5 else None) == one["label"]


async def test_other_contracts_are_as_before(client: httpx.AsyncClient) -> None:
    """Embeddings, and the classes of the other contracts, have no further number."""
    embedded = (await client.post("/v1/embed", content=PHOTOS[0])).json()["results"][0]
    listed = (await client.post("/models/tiny?top_k=100", content=PHOTOS[0])).json()
    body = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64.b64encode(PHOTOS[0]).decode()]}
        ]
    }
    tensors = (await client.post("/v2/models/tiny/infer", json=body)).json()["outputs"]

    assert DIM == embedded["dim"] == len(embedded["embedding"])
    assert 7 == len(listed)
    assert [[1, 7], [1, DIM], [1, 1]] == [one["shape"] for one in tensors]


async def test_a_model_without_it(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a domain results have no share, and `reject` is an error. A domain of other weights is ignored."""
    copied = write_tiny_model(tmp_path / "other", seed=3)
    domain_file.save(copied / "in_domain.json", "0" * 12, domain(1))
    for folder in (tiny_model, copied):
        async with running(create_app(settings_for(folder))) as client:
            plain = (await client.post("/v1/classify", content=PHOTOS[0])).json()["results"][0]
            refused = await client.post("/v1/classify?reject=0.1", content=PHOTOS[0])
            info = (await client.get("/info")).json()["model"]
        assert "in_domain" not in plain
        assert (400, False) == (refused.status_code, info["in_domain"])
        assert "this model does not have" in refused.json()["detail"]
