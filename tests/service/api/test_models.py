"""Several models in one server: every contract can name one, and each answers as if it were alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.e2e.traffic import samples
from tests.service.api.oip.oip_requests import binary_request, elements, outputs_of
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

PHOTO, PIXELS = photo(5), np.random.default_rng(5).integers(0, 256, (1, 70, 90, 3), np.uint8)
TEXT = base64.b64encode(PHOTO).decode()
NAMES = ("alpha", "beta")  # alpha is the default

Ask = Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of different weights, image sizes and numbers of classes."""
    folder = tmp_path_factory.mktemp("several")
    alpha = write_tiny_model(folder / "alpha", seed=1)
    beta = write_tiny_model(folder / "beta", seed=2, image_size=(96, 96), num_classes=3)
    return {"alpha": alpha, "beta": beta}


@pytest.fixture(scope="module")
async def several(folders: dict[str, Path], anyio_backend: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with both models, which are ready."""
    listed = ",".join(f"{name}={folders[name]}" for name in NAMES)
    app = create_app(Settings.model_validate({"models": listed, "device": "cpu", "threads": 1}))
    async with running(app) as client:
        async with asyncio.timeout(60):
            while (await client.get("/v2/models/beta/ready")).status_code != 200:
                await asyncio.sleep(0.02)
        yield client


@pytest.fixture(scope="module")
async def alone(folders: dict[str, Path], anyio_backend: object) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Clients of two servers, each with one of the models, under its name."""
    async with contextlib.AsyncExitStack() as stack:
        apps = {name: create_app(settings_for(folders[name], model_name=name)) for name in NAMES}
        yield {name: await stack.enter_async_context(running(app)) for name, app in apps.items()}


async def by_query(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """The native API, with the name in the query."""
    return await client.post("/v1/embed", params={"model": name}, content=PHOTO)


async def by_form(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """The native API, with the name in a form."""
    return await client.post("/v1/embed", files={"image": PHOTO}, data={"model": name})


async def by_json(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """The native API, with the name in JSON."""
    return await client.post("/v1/embed", json={"model": name, "images": [TEXT]})


async def by_openai(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """OpenAI's embeddings."""
    return await client.post("/v1/embeddings", json={"model": name, "input": f"data:image/jpeg;base64,{TEXT}"})


async def by_bulk(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """A stream."""
    return await client.post("/v1/bulk", params={"model": name}, content=json.dumps({"image": TEXT}))


async def by_hugging_face(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """Hugging Face's classification, with the model in the path."""
    return await client.post(f"/models/{name}", content=PHOTO)


def oip(suffix: str = "", version: str = "") -> Ask:
    """The Open Inference Protocol: one of the two names of a model, with a version or without."""

    async def ask(client: httpx.AsyncClient, name: str) -> httpx.Response:
        kind = (elements(PHOTO), "BYTES", [1, 1]) if not suffix else (PIXELS.tobytes(), "UINT8", list(PIXELS.shape))
        wanted = [{"name": one, "parameters": {"binary_data": False}} for one in ("embedding", "scores")]
        body, headers = binary_request(*kind, outputs=wanted)
        return await client.post(f"/v2/models/{name}{suffix}{version}/infer", content=body, headers=headers)

    return ask


def values(answer: httpx.Response) -> list[float]:
    """The numbers of an answer of any contract."""
    assert 200 == answer.status_code, answer.text
    if "/v2/" in str(answer.url):
        return [float(value) for one in outputs_of(answer).values() for value in one.ravel()]
    content = answer.json()
    if isinstance(content, list):
        return [one["score"] for one in content]
    [item] = content.get("results") or content.get("data") or [content]
    found: list[float] = item["embedding"]
    return found


def fingerprint(answer: httpx.Response) -> str:
    """The fingerprint in an answer of any contract."""
    if header := answer.headers.get("X-Model-Fingerprint"):
        return str(header)
    content = answer.json()
    return str((content.get("model") or content["parameters"])["fingerprint"])


NATIVE = {"query": by_query, "form": by_form, "json": by_json}
OIP = {
    "oip": oip(),
    "oip version": oip(version="/versions/1"),
    "tensor": oip("-tensor"),
    "tensor version": oip("-tensor", "/versions/1"),
}
WAYS: dict[str, Ask] = NATIVE | OIP | {"bulk": by_bulk, "openai": by_openai, "hugging face": by_hugging_face}


@pytest.mark.parametrize("way", WAYS)
async def test_every_contract_can_name_a_model(
    several: httpx.AsyncClient, alone: dict[str, httpx.AsyncClient], way: str
) -> None:
    """The answers of both models equal those of servers that have only this model, and name its fingerprint."""
    ask, fingerprints = WAYS[way], []
    for name in NAMES:
        answer, expected = await ask(several, name), await ask(alone[name], name)
        np.testing.assert_allclose(values(answer), values(expected), atol=1e-6)
        assert fingerprint(expected) == fingerprint(answer)
        fingerprints.append(fingerprint(answer))

    assert 2 == len(set(fingerprints))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"images": [TEXT]}),
        ("/v1/bulk", {"image": TEXT}),
        ("/v1/embeddings", {"input": TEXT}),
        ("/v1/embeddings", {"input": TEXT, "model": ""}),
        ("/", {"inputs": TEXT}),
        ("/vectors", {"image": TEXT}),
    ],
)
async def test_without_a_name_the_default_model_answers(
    several: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """The first model of VIM_MODELS answers requests that name none."""
    answer = await several.post(path, json=body)
    default = (await several.get("/info")).json()["model"]

    assert ("alpha", 200) == (default["name"], answer.status_code)
    assert default["fingerprint"] == fingerprint(answer)


@pytest.mark.parametrize("way", [*WAYS])
async def test_an_unknown_name_is_404_in_the_format_of_the_contract(several: httpx.AsyncClient, way: str) -> None:
    """OpenAI's clients read an object, those of the other protocols a string in plain JSON."""
    answer = await WAYS[way](several, "gamma")
    content = answer.json()

    assert 404 == answer.status_code
    if way == "openai":
        assert ("model_not_found", "invalid_request_error") == (content["error"]["code"], content["error"]["type"])
        assert "'gamma' is not found" in content["error"]["message"]
    else:
        suffix = "-tensor" if way.startswith("tensor") else ""
        assert f"'gamma{suffix}' is not found; this server has 'alpha', 'beta'" in content["error"]
        assert ("application/json", "model_not_found") == (answer.headers["Content-Type"], content["code"])


@pytest.mark.parametrize(
    "path",
    [
        "/info?model=gamma",
        "/v1/models/gamma",
        *(f"/v2/models/gamma{end}" for end in ("", "/ready", "/config", "/stats")),
    ],
)
async def test_an_unknown_name_is_404_where_nothing_is_computed(several: httpx.AsyncClient, path: str) -> None:
    """Descriptions of a model that does not exist are not found."""
    answer = await several.get(path)

    assert 404 == answer.status_code
    assert "'gamma' is not found" in answer.text


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats", "/infer"])
async def test_an_unknown_version_is_404(several: httpx.AsyncClient, path: str) -> None:
    """Each model has one version; another one is refused with the version that is served."""
    method = "POST" if path == "/infer" else "GET"
    answer = await several.request(method, f"/v2/models/beta/versions/2{path}", content=b"{}")

    assert 404 == answer.status_code
    assert "version '2' is not found; the version that is served is 1" in answer.json()["error"]


async def test_each_model_describes_itself(several: httpx.AsyncClient, alone: dict[str, httpx.AsyncClient]) -> None:
    """/info, metadata and configuration are those of the model; the lists have both, the default one first."""
    for name, size, classes in (("alpha", 64, 7), ("beta", 96, 3)):
        info = (await several.get("/info", params={"model": name})).json()
        assert (name, classes, [size, size]) == (
            info["model"]["name"],
            info["model"]["classes"],
            list(info["model"]["config"]["image_size"]),
        )
        assert [(one, "ready") for one in NAMES] == [(one["name"], one["state"]) for one in info["models"]]
        for end in ("", "/config", "/ready", "-tensor", "-tensor/ready", "/versions/1"):
            path = f"/v2/models/{name}{end}"
            assert (await alone[name].get(path)).json() == (await several.get(path)).json()
        assert name == (await several.get(f"/v1/models/{name}")).json()["id"]

    assert [*NAMES] == [one["id"] for one in (await several.get("/v1/models")).json()["data"]]


async def test_requests_are_counted_by_model(several: httpx.AsyncClient) -> None:
    """Requests, images and batches have the label `model`; a request for an unknown one is counted as `other`."""
    before = await samples(several)
    for way in (by_query, by_json, by_form):
        await way(several, "beta")
    await by_json(several, "gamma")
    after = await samples(several)

    def grown(name: str, model: str) -> float:
        return sum(value - before.get(key, 0) for key, value in after.items() if name in key and f'"{model}"' in key)

    assert [0, 3, 1] == [grown("vim_requests_total", name) for name in (*NAMES, "other")]
    assert [0, 3] == [grown("vim_images_total", name) for name in NAMES]
    assert [0, 3] == [grown("vim_batch_size_sum", name) for name in NAMES]
    assert not [key for key in after if "gamma" in key]


async def test_the_log_names_the_model(several: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """The line of a request has the name of its model, also of the default one."""
    with caplog.at_level(logging.INFO, "vim.request"):
        await by_json(several, "beta")
        await by_hugging_face(several, "beta")
        await oip("-tensor")(several, "beta")
        await by_bulk(several, "beta")
        await several.post("/v1/embed", content=PHOTO)
        await several.post("/", content=PHOTO)

    found = [record.fields["model"] for record in caplog.records if hasattr(record, "fields")]
    assert ["beta"] * 4 + ["alpha"] * 2 == found


async def test_one_image_for_two_models_is_computed_twice(several: httpx.AsyncClient) -> None:
    """The same bytes at the same time are joined for one model, and never between models."""
    expected = {name: values(await by_query(several, name)) for name in NAMES}
    before = await samples(several)
    answers = await asyncio.gather(*(by_query(several, name) for name in NAMES))
    after = await samples(several)

    assert 0 == after["vim_joined_images_total"] - before["vim_joined_images_total"]
    for name, answer in zip(NAMES, answers, strict=True):
        np.testing.assert_allclose(values(answer), expected[name], atol=1e-6)
    many = await asyncio.gather(*(by_query(several, name) for name in NAMES * 8))
    for name, answer in zip(NAMES * 8, many, strict=True):
        np.testing.assert_allclose(values(answer), expected[name], atol=1e-5)
    joined = (await samples(several))["vim_joined_images_total"] - after["vim_joined_images_total"]
    assert joined > 0


async def test_statistics_are_kept_by_name(several: httpx.AsyncClient) -> None:
    """Each name of each model has its own counts in the Open Inference Protocol."""

    async def counts() -> dict[str, int]:
        found = (await several.get("/v2/models/stats")).json()["model_stats"]
        return {one["name"]: one["inference_stats"]["success"]["count"] for one in found}

    before = await counts()
    for ask, name, times in ((oip(), "beta", 2), (oip("-tensor"), "beta", 1), (oip(), "alpha", 1)):
        for _ in range(times):
            await ask(several, name)
    after = await counts()
    [beta] = (await several.get("/v2/models/beta/stats")).json()["model_stats"]

    expected = {"alpha": 1, "alpha-tensor": 0, "beta": 2, "beta-tensor": 1}
    assert expected == {name: after[name] - before[name] for name in after}
    assert after["beta"] == beta["inference_stats"]["success"]["count"]
