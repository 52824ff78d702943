"""/v1/classify and /v1/embed, through decoding, queue and a real device process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image

import model
from model.preprocessing.recipe import Crop, Mode, Preprocess
from model.runtime.runner import Runner
from service.app import create_app
from tests.model.preprocessing.profiles import rgb_profile
from tests.service.conftest import running, settings_for
from tests.tiny import LABELS, photo

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def vim(tiny_model: Path) -> model.Vim:
    """The served model, loaded in this process."""
    return model.load(tiny_model, device="cpu", preprocess="friendly")


def expected_scores(vim: model.Vim, data: bytes) -> np.ndarray:
    """The model's scores for an encoded image, without the service."""
    pixels = Preprocess(64, mode="friendly")(Image.open(io.BytesIO(data)))
    scores = Runner(vim).run(pixels[None], scores=True, cls=False, mean=False).scores
    assert scores is not None
    row: np.ndarray = scores[0]
    return row


async def test_classify_gives_the_models_own_scores(client: httpx.AsyncClient, vim: model.Vim) -> None:
    """/v1/classify returns the model's labels and probabilities, best first, five by default."""
    response = await client.post("/v1/classify", content=photo(1))
    body = response.json()
    scores = expected_scores(vim, photo(1))
    best = np.argsort(-scores)[:5]

    assert response.status_code == 200
    predictions = body["results"][0]["predictions"]
    assert [int(i) for i in best] == [one["index"] for one in predictions]
    assert [LABELS[i] for i in best] == [one["label"] for one in predictions]
    np.testing.assert_allclose([one["score"] for one in predictions], scores[best], atol=1e-6)
    assert {"name": "tiny", "fingerprint": vim.fingerprint} == body["model"]
    assert body["timings_ms"]["batch_size"] >= 1


async def test_head_of_the_raw_embedding_is_the_classification(client: httpx.AsyncClient, vim: model.Vim) -> None:
    """The classifier head applied to the raw cls embedding gives the classification, within 1e-5."""
    options = {"normalize": "false", "pooling": "cls"}
    embedded = (await client.post("/v1/embed", content=photo(2), params=options)).json()["results"][0]
    classified = (await client.post("/v1/classify", content=photo(2), params={"top_k": 7})).json()["results"][0]

    with torch.inference_mode():
        scores = vim.forward_head(torch.tensor([embedded["embedding"]])).softmax(-1)[0].numpy()
    for one in classified["predictions"]:
        assert one["score"] == pytest.approx(float(scores[one["index"]]), abs=1e-5)


async def test_embedding_is_normalised_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    """An embedding is normalised by default, and the answer has normalisation, dimension and pooling."""
    item = (await client.post("/v1/embed", content=photo(3))).json()["results"][0]
    raw = (await client.post("/v1/embed", content=photo(3), params={"normalize": "false"})).json()["results"][0]

    assert (32, "cls", True, False) == (item["dim"], item["pooling"], item["normalized"], raw["normalized"])
    assert 1 == pytest.approx(float(np.linalg.norm(item["embedding"])), abs=1e-6)
    unit = np.array(raw["embedding"]) / np.linalg.norm(raw["embedding"])
    np.testing.assert_allclose(item["embedding"], unit, atol=1e-6)


async def test_mean_pooling_is_the_mean_of_the_patch_tokens(client: httpx.AsyncClient, vim: model.Vim) -> None:
    """Mean pooling gives the mean of the patch tokens, without class tokens."""
    options = {"pooling": "mean", "normalize": "false"}
    item = (await client.post("/v1/embed", content=photo(4), params=options)).json()["results"][0]
    pixels = Preprocess(64, mode="friendly")(Image.open(io.BytesIO(photo(4))))
    with torch.inference_mode():
        mean, std = (torch.tensor(three) for three in (vim.preprocess.mean, vim.preprocess.std))
        tokens = vim.forward_tokens(((torch.from_numpy(pixels[None]) / 255 - mean) / std).permute(0, 3, 1, 2))[0]
    patches = torch.cat((tokens[:8], tokens[9:]))  # 16 patches, the class token in slot 8

    np.testing.assert_allclose(item["embedding"], patches.mean(0).numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("claimed", ["image/png", "application/x-www-form-urlencoded", None])
async def test_any_format_whatever_the_content_type_says(
    client: httpx.AsyncClient, kind: str, claimed: str | None
) -> None:
    """The bytes decide the image format; a wrong Content-Type, as curl sends it, does not matter."""
    headers = {"Content-Type": claimed} if claimed else {}
    response = await client.post("/v1/classify", content=photo(5, kind=kind), headers=headers)

    assert response.status_code == 200


async def test_top_k_is_clamped_to_the_classes(client: httpx.AsyncClient) -> None:
    """A `top_k` above the number of classes returns all classes."""
    response = await client.post("/v1/classify", content=photo(), params={"top_k": 1000})

    assert len(LABELS) == len(response.json()["results"][0]["predictions"])


@pytest.mark.parametrize(
    ("path", "options", "mentions"),
    [
        ("/v1/classify", {"top_k": "0"}, "top_k"),
        ("/v1/classify", {"top_k": "many"}, "top_k"),
        ("/v1/classify", {"topk": "3"}, "topk: unknown option, did you mean top_k?"),
        ("/v1/embed", {"pooling": "max"}, "pooling"),
        ("/v1/embed", {"normalize": "perhaps"}, "normalize"),
        ("/v1/embed", {"top_k": "3"}, "top_k: unknown option"),
    ],
)
async def test_wrong_options_are_named(
    client: httpx.AsyncClient, path: str, options: dict[str, str], mentions: str
) -> None:
    """Wrong and unknown options are refused with 422, and the error names them."""
    response = await client.post(path, content=photo(), params=options)

    assert response.status_code == 422
    assert mentions in response.json()["detail"]
    assert "invalid_options" == response.json()["code"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"hello", 415, "unsupported_image"),
        (photo()[:300], 415, "unsupported_image"),
        (b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic", 415, "unsupported_image"),
    ],
)
async def test_bad_bodies_have_their_own_errors(client: httpx.AsyncClient, body: bytes, status: int, code: str) -> None:
    """Each kind of bad body has its status, code and message, and the request id."""
    response = await client.post("/v1/classify", content=body, headers={"X-Request-ID": "mine"})
    problem = response.json()

    assert (status, code, "mine", "/v1/classify") == (
        response.status_code,
        problem["code"],
        problem["request_id"],
        problem["instance"],
    )
    assert problem["error"] == problem["detail"]
    assert "mine" == response.headers["X-Request-ID"]


async def test_a_bad_image_harms_nobody_in_flight(client: httpx.AsyncClient) -> None:
    """Bad requests at the same time do not change the answers of good ones."""
    alone = (await client.post("/v1/classify", content=photo(7))).json()["results"]
    bodies = [photo(7), b"junk", photo(7)[:500], b"", photo(7)] * 6
    answers = await asyncio.gather(*(client.post("/v1/classify", content=body) for body in bodies))
    good = [answer.json()["results"] for answer in answers if answer.status_code == 200]

    assert 12 == len(good)
    for results in good:
        assert [p["label"] for p in alone[0]["predictions"]] == [p["label"] for p in results[0]["predictions"]]
        np.testing.assert_allclose(
            [p["score"] for p in results[0]["predictions"]], [p["score"] for p in alone[0]["predictions"]], atol=1e-5
        )


async def test_the_answer_names_the_batches_that_ran_its_images(client: httpx.AsyncClient) -> None:
    """`batches` has the sizes of the batches that ran the images; a failed image was in none."""
    files = [("image", photo(seed)) for seed in range(20)]
    body = (await client.post("/v1/classify", files=[*files, ("image", b"no image")])).json()

    assert 20 == sum(body["batches"])
    assert max(body["batches"]) == body["timings_ms"]["batch_size"] <= 8


async def test_concurrent_requests_share_batches(client: httpx.AsyncClient, tiny_model: Path) -> None:
    """Classify and embed in one forward pass; every caller gets its own image's answer.

    VIM_MAX_WAIT_MS is set here: a tiny model would otherwise finish before the next image is decoded.
    """
    alone = [(await client.post("/v1/embed", content=photo(seed))).json()["results"][0] for seed in range(12)]
    app = create_app(settings_for(tiny_model, max_batch=8, max_wait_ms=2_000))
    async with running(app) as patient:
        calls = [patient.post("/v1/embed", content=photo(seed)) for seed in range(12)]
        others = [patient.post("/v1/classify", content=photo(seed)) for seed in range(12, 16)]
        answers = await asyncio.gather(*calls, *others)
    sizes = [answer.json()["timings_ms"]["batch_size"] for answer in answers]

    assert [8] * 16 == sizes
    for one, answer in zip(alone, answers[:12], strict=True):
        np.testing.assert_allclose(answer.json()["results"][0]["embedding"], one["embedding"], atol=1e-5)


async def test_overload_is_refused_before_decoding(app: FastAPI, client: httpx.AsyncClient) -> None:
    """With more images than the queue holds some requests get 429, the others are answered, no slot is lost."""
    answers = await asyncio.gather(*(client.post("/v1/classify", content=photo(9)) for _ in range(150)))
    refused = [answer for answer in answers if answer.status_code == 429]

    assert {200, 429} == {answer.status_code for answer in answers}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert all("VIM_QUEUE_IMAGES" in answer.json()["detail"] for answer in refused)
    assert 0 == app.state.engine.backend.slots.in_use


@pytest.mark.parametrize("given", ["0", "-5", "soon", "1.5", "٣"])
async def test_a_wrong_deadline_is_refused(client: httpx.AsyncClient, given: str) -> None:
    """A time limit that is not a whole number of milliseconds gets 422, and the error names the header."""
    headers = {b"X-Request-Timeout-Ms": given.encode()}
    answer = await client.post("/v1/classify", content=photo(), headers=headers)

    assert (422, "invalid_options") == (answer.status_code, answer.json()["code"])
    assert "X-Request-Timeout-Ms" in answer.json()["detail"]


async def test_the_crop_is_chosen_by_the_request(client: httpx.AsyncClient, vim: model.Vim) -> None:
    """Each crop gives the model's own answer for its pixels; the answer says which crop it is of."""
    data, vectors = photo(6, size=(150, 70)), {}
    for crop in get_args(Crop):
        options = {"crop": crop, "normalize": "false"}
        item = (await client.post("/v1/embed", content=data, params=options)).json()["results"][0]
        pixels = Preprocess(64, mode="friendly", crop=crop)(Image.open(io.BytesIO(data)))
        expected = Runner(vim).run(pixels[None], scores=True, cls=True, mean=False)
        assert expected.cls is not None
        assert expected.scores is not None
        assert crop == item["crop"]
        np.testing.assert_allclose(item["embedding"], expected.cls[0], rtol=0, atol=1e-5)
        vectors[crop] = tuple(item["embedding"])
        best = (await client.post("/v1/classify", content=data, params={"crop": crop})).json()["results"][0]
        assert int(expected.scores[0].argmax()) == best["predictions"][0]["index"]

    assert 3 == len(set(vectors.values()))


async def test_the_crop_in_other_forms(client: httpx.AsyncClient) -> None:
    """Forms, JSON members, bulk lines and raw vectors accept a crop, and an unknown crop is refused."""
    data = photo(6, size=(150, 70))
    text = base64.b64encode(data).decode()
    native = await client.post("/v1/embed", content=data, params={"crop": "pad"})
    vector = native.json()["results"][0]["embedding"]

    form = await client.post("/v1/embed", files={"image": data}, data={"crop": "pad"})
    body = await client.post("/v1/embed", json={"images": [text], "crop": "pad"})
    line = json.dumps({"image": text}).encode() + b"\n"
    bulk = await client.post("/v1/bulk", content=line, params={"crop": "pad"})
    raw = await client.post(
        "/v1/embed", content=data, params={"crop": "pad"}, headers={"Accept": "application/octet-stream"}
    )
    refused = await client.post("/v1/embed", content=data, params={"crop": "left"})

    assert [vector] * 2 == [one.json()["results"][0]["embedding"] for one in (form, body)]
    assert (vector, "pad") == (bulk.json()["embedding"], bulk.json()["crop"])
    assert "pad" == raw.headers["X-Crop"]
    np.testing.assert_allclose(np.frombuffer(raw.content, "<f4"), vector, rtol=0, atol=1e-7)
    assert 422 == refused.status_code


async def test_identical_images_with_other_crops_are_not_shared(client: httpx.AsyncClient) -> None:
    """Requests for the same file at once get their own crops."""
    data = photo(8, size=(150, 70))
    crops = [*get_args(Crop)] * 3
    answers = await asyncio.gather(*(client.post("/v1/embed", content=data, params={"crop": crop}) for crop in crops))

    vectors = {(crop, tuple(one.json()["results"][0]["embedding"])) for crop, one in zip(crops, answers, strict=True)}
    assert 3 == len(vectors)


@pytest.mark.parametrize("mode", ["friendly", "reference"])
async def test_colour_profiles_are_converted_in_friendly_mode(tiny_model: Path, mode: Mode) -> None:
    """A photograph in Display P3 gets the model's answer for its sRGB colours; the reference ignores its profile."""
    file, profile = io.BytesIO(), rgb_profile("Display P3")
    Image.open(io.BytesIO(photo(9, size=(300, 200)))).save(file, "JPEG", quality=95, icc_profile=profile)
    pixels = Preprocess(64, mode=mode)(Image.open(io.BytesIO(file.getvalue())))
    expected = Runner(model.load(tiny_model, device="cpu")).run(pixels[None], scores=False, cls=True, mean=False).cls
    assert expected is not None

    async with running(create_app(settings_for(tiny_model, preprocess=mode))) as server:
        answer = await server.post("/v1/embed", content=file.getvalue(), params={"normalize": "false"})
        page = (await server.get("/metrics")).text

    np.testing.assert_allclose(answer.json()["results"][0]["embedding"], expected[0], rtol=0, atol=1e-5)
    plain = Preprocess(64, mode="reference")(Image.open(io.BytesIO(file.getvalue())))
    assert (mode == "reference") == np.array_equal(plain, pixels)
    assert (mode == "friendly") == ('vim_colour_profiles_total{kind="converted"} 1.0' in page)
