"""The repository extension: models are listed, loaded and unloaded over HTTP, by an administrator only."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.e2e.traffic import another_photo
from tests.service.conftest import running
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

ADMIN, USER = "admin-key-of-the-test", "user-key-of-the-test"
HEADERS = {"X-API-Key": ADMIN}
PHOTO = photo(3)
INDEX = "/v2/repository/index"
MISSING = {"state": "UNAVAILABLE", "reason": "not loaded"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: two versions of `m`, which is the default model, and one of `n`."""
    folder = tmp_path_factory.mktemp("repository")
    for seed, one in enumerate(("m/1", "m/2", "n/1")):
        write_tiny_model(folder / one, seed=seed)
    return folder


def settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a server of this repository that an administrator may control."""
    wanted = {"model_repository": folder, "model_control": "explicit", "admin_keys": ADMIN}
    return Settings.model_validate({"device": "cpu", "threads": 1} | wanted | changes)


@pytest.fixture(scope="module")
def app(folder: Path) -> FastAPI:
    """The application."""
    return create_app(settings(folder))


@pytest.fixture(scope="module")
async def server(app: FastAPI, anyio_backend: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key of an administrator, of a server whose models are ready."""
    async with running(app) as client:
        client.headers.update(HEADERS)
        while [one["state"] for one in await index(client, ready=True)] != ["READY", "READY"]:
            await asyncio.sleep(0.02)
        yield client


@pytest.fixture
async def client(server: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """The same, with version 2 of `m`, and `n`, whatever the test before has loaded."""
    yield server
    for name, config in (("m", policy(2)), ("n", None)):
        served = [one for one in await index(server, ready=True) if one["name"] == name]
        if [one["version"] for one in served] not in (["2"], ["1"][: name == "n"]):
            assert 200 == (await load(server, name, config)).status_code
    async with asyncio.timeout(60):
        while states(await index(server)) & {"UNLOADING", "LOADING"}:
            await asyncio.sleep(0.02)


def policy(*versions: Any) -> str:
    """Triton's configuration that selects these versions."""
    return json.dumps({"version_policy": {"specific": {"versions": versions}}})


async def load(client: httpx.AsyncClient, name: str, config: str | None = None) -> httpx.Response:
    """Load a model, as tritonclient asks for it."""
    body = {} if config is None else {"parameters": {"config": config}}
    return await client.post(f"/v2/repository/models/{name}/load", json=body)


async def unload(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """Unload a model, as tritonclient asks for it."""
    body = {"parameters": {"unload_dependents": False}}
    return await client.post(f"/v2/repository/models/{name}/unload", json=body)


async def index(client: httpx.AsyncClient, *, ready: bool = False) -> list[dict[str, str]]:
    """The entries of the index."""
    answer = await client.post(INDEX, json={"ready": ready})
    assert 200 == answer.status_code, answer.text
    entries: list[dict[str, str]] = answer.json()
    return entries


def states(entries: list[dict[str, str]]) -> set[str]:
    """The states in an index."""
    return {one["state"] for one in entries}


async def served(client: httpx.AsyncClient, name: str = "m") -> tuple[str, str, str]:
    """The version in the metadata, and the fingerprints of an answer and of /info."""
    versions = (await client.get(f"/v2/models/{name}")).json()["versions"]
    answer = (await client.post("/v1/embed", params={"model": name}, content=PHOTO)).json()
    info = (await client.get("/info", params={"model": name})).json()
    [version] = versions
    return version, answer["model"]["fingerprint"], info["model"]["fingerprint"]


@pytest.mark.parametrize("path", [INDEX, "/v2/repository/models/m/load", "/v2/repository/models/m/unload"])
async def test_without_the_setting_nothing_can_be_controlled(folder: Path, path: str) -> None:
    """With VIM_MODEL_CONTROL=none the paths are not found, also with the key of an administrator."""
    closed = create_app(settings(folder, model_control="none"))
    transport = httpx.ASGITransport(closed, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://vim", headers=HEADERS) as client:
        answer = await client.post(path, json={})

    assert (404, "not_found") == (answer.status_code, answer.json()["code"])
    assert "VIM_MODEL_CONTROL" in answer.json()["error"]


@pytest.mark.parametrize("path", [INDEX, "/v2/repository/models/m/load", "/v2/repository/models/m/unload"])
@pytest.mark.parametrize("keys", [{}, {"api_keys": USER}], ids=["open", "with keys"])
async def test_only_administrators_may_control_models(folder: Path, path: str, keys: dict[str, str]) -> None:
    """Without a key, and with a key that is not an administrator's, the answer is 401, whatever the API requires."""
    app = create_app(settings(folder, **keys))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://vim") as client:
        for headers in ({}, {"X-API-Key": USER}, {"Authorization": f"Bearer {ADMIN}x"}):
            answer = await client.post(path, json={}, headers=headers)
            assert (401, "Bearer") == (answer.status_code, answer.headers["WWW-Authenticate"])
            assert isinstance(answer.json()["error"], str)


async def test_the_index_has_all_versions(client: httpx.AsyncClient) -> None:
    """Each version on disk has an entry with its state; `ready` lists those that serve; a body is not required."""
    first = {"name": "m", "version": "1"} | MISSING
    second, other = (
        {"name": name, "version": version, "state": "READY", "reason": ""} for name, version in ("m2", "n1")
    )

    assert [first, second, other] == await index(client)
    assert [second, other] == await index(client, ready=True)
    assert [first, second, other] == (await client.post(INDEX)).json()


async def test_a_load_changes_the_version_for_every_later_request(client: httpx.AsyncClient) -> None:
    """Version 1 has another fingerprint everywhere; loading version 2 again brings back its own."""
    second = await served(client)
    answer = await load(client, "m", policy(1))
    assert (200, {}) == (answer.status_code, answer.json())
    first = await served(client)
    await load(client, "m", policy("2"))

    assert ("1", "2") == (first[0], second[0])
    assert first[1] == first[2] != second[1] == second[2]
    assert second == await served(client)


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (None, None),
        ("{}", None),
        ('{"version_policy": {"latest": {"num_versions": 1}}}', None),
        (policy(1), "1"),
        (policy("2"), "2"),
        ('{"name": "m", "versionPolicy": {"specific": {"versions": ["1"]}}}', "1"),
    ],
)
async def test_a_configuration_selects_one_version_or_the_newest(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch, config: str | None, version: str | None
) -> None:
    """Numbers and texts, in the two spellings of protocol buffers; without a selected version it is the newest."""
    asked = []

    async def record(*arguments: Any) -> None:
        asked.append(arguments)

    monkeypatch.setattr(app.state.engine.backend, "load", record)

    assert 200 == (await load(client, "m", config)).status_code
    assert [("m", version)] == asked


async def test_a_damaged_version_is_not_loaded(client: httpx.AsyncClient, folder: Path, tmp_path: Path) -> None:
    """The error has the reason, and so has the index; version 2 goes on."""
    before = await served(client)
    damaged = write_tiny_model(folder / "m" / "3")
    (damaged / "model.safetensors").write_bytes(b"garbage" * 100)
    try:
        answer = await load(client, "m")
        [entry] = [one for one in await index(client) if one["version"] == "3"]
        assert (400, "load_failed") == (answer.status_code, answer.json()["code"])
        assert answer.json()["error"].startswith("m, version 3: ")
        assert ("UNAVAILABLE", True) == (entry["state"], entry["reason"] in answer.json()["error"])
        assert before == await served(client)
    finally:
        damaged.rename(tmp_path / "3")


async def test_an_unloaded_model_is_not_found(client: httpx.AsyncClient) -> None:
    """Requests for it get 404, also a second unload; its entry in the index remains, and a load brings it back."""
    before = await served(client, "n")
    answer = await unload(client, "n")
    assert (200, {}) == (answer.status_code, answer.json())

    for path in ("/v2/models/n", "/v2/models/n/ready", "/info?model=n"):
        assert 404 == (await client.get(path)).status_code
    again = await unload(client, "n")
    assert (404, "model_not_found") == (again.status_code, again.json()["code"])
    assert ["m"] == [one["name"] for one in await index(client, ready=True)]
    assert "n" in [one["name"] for one in await index(client)]
    assert 200 == (await load(client, "n")).status_code
    assert before == await served(client, "n")


async def test_without_its_default_model_a_server_is_not_ready(client: httpx.AsyncClient) -> None:
    """It lives and serves the others by name; requests without a name get 404 until the default model is loaded."""
    await unload(client, "m")
    paths = ("/livez", "/readyz", "/info", "/info?model=n")
    found = [(await client.get(path)).status_code for path in paths]
    unnamed, named = [await client.post("/v1/embed", params=params, content=PHOTO) for params in ({}, {"model": "n"})]
    await load(client, "m")

    assert [200, 503, 404, 200] == found
    assert (404, 200) == (unnamed.status_code, named.status_code)
    assert "name another" in unnamed.json()["error"]
    assert 200 == (await client.get("/readyz")).status_code


@pytest.mark.parametrize(
    ("name", "config"),
    [("nope", None), ("m", policy(7)), ("m-tensor", None), ("m", policy("x/../1")), ("m", policy(-1))],
)
async def test_what_does_not_exist_is_404(client: httpx.AsyncClient, name: str, config: str | None) -> None:
    """An unknown name or version is not found, and the error says what exists."""
    answer = await load(client, name, config)

    assert (404, "model_not_found") == (answer.status_code, answer.json()["code"])
    assert ("it has 2, 1" if config else "this server has m, n") in answer.json()["error"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": policy()},
        {"config": policy(1, 2)},
        {"config": '{"version_policy": {"all": {}}}'},
        {"config": '{"version_policy": {"specific": 1}}'},
        {"config": '{"version_policy": 3}'},
        {"config": "no JSON"},
        {"config": "[" * 100_000},
        {"config": '["latest"]'},
        {"config": {"version_policy": {}}},
        {"config": ""},
        {"config": policy(1), "file:1/model.safetensors": "AAAA"},
        {"x" * 1000: 1},
    ],
    ids=lambda value: str(value)[:40],
)
async def test_parameters_that_are_not_supported_are_refused(
    client: httpx.AsyncClient, parameters: dict[str, Any]
) -> None:
    """Only one version can be selected; files in a request, and several versions, get 400 in a short sentence."""
    answer = await client.post("/v2/repository/models/m/load", json={"parameters": parameters})

    assert (400, "unsupported_input") == (answer.status_code, answer.json()["code"])
    assert len(answer.json()["error"]) < 300


@pytest.mark.parametrize("path", [INDEX, "/v2/repository/models/m/load", "/v2/repository/models/m/unload"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff", b"[" * 100_000], ids=lambda body: repr(body[:3]))
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    """Broken JSON and other values than an object get 400, and nothing is loaded or unloaded."""
    answer = await client.post(path, content=body)

    assert (400, "malformed_body") == (answer.status_code, answer.json()["code"])
    assert "the body must be JSON" in answer.json()["error"]
    assert 2 == len(await index(client, ready=True))


@pytest.mark.parametrize("parameters", [3, "x", [1]])
async def test_parameters_that_are_no_object_are_refused(client: httpx.AsyncClient, parameters: Any) -> None:
    """The member `parameters` must be an object."""
    answer = await client.post("/v2/repository/models/m/load", json={"parameters": parameters})

    assert (400, "malformed_body") == (answer.status_code, answer.json()["code"])


async def test_a_body_of_more_than_a_megabyte_is_refused(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Bodies of this extension are small; their memory is free afterwards."""
    answer = await client.post(INDEX, content=b" " * (1 << 20) + b"{}")

    assert (413, "body_too_large") == (answer.status_code, answer.json()["code"])
    usage = app.state.engine.backend.slots.usage
    assert 0 == sum(usage.body_bytes["interactive"].parts)


async def test_a_reload_interrupts_nothing(client: httpx.AsyncClient) -> None:
    """Requests during a load are answered by one of the two versions, and a stream by the one that it began with."""
    line = json.dumps({"image": base64.b64encode(PHOTO).decode()}).encode() + b"\n"
    loaded, found = asyncio.Event(), list[str]()

    async def body() -> AsyncIterator[bytes]:
        yield line
        await loaded.wait()
        yield line

    former = (await client.post("/v1/embed", content=PHOTO)).json()
    stream = asyncio.create_task(client.post("/v1/bulk", content=body()))
    reload = asyncio.create_task(load(client, "m", policy(1)))
    while not reload.done():
        found.append((await client.post("/v1/embed", content=another_photo())).json()["model"]["fingerprint"])
    version, newest, _ = await served(client)
    second = (await index(client))[1]["state"]
    loaded.set()
    answers = [json.loads(one) for one in (await stream).text.splitlines()]

    assert ("1", "UNLOADING") == (version, second)
    expected = pytest.approx(former["results"][0]["embedding"], abs=1e-5)
    assert [expected] * 2 == [one["embedding"] for one in answers]
    assert former["model"]["fingerprint"] == found[0] != newest
    assert {former["model"]["fingerprint"], newest} >= set(found)
