"""Custom heads over HTTP: an administrator adds, replaces and removes them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import MOST_BYTES, Head
from service.app import create_app
from tests.service.api.native.heads.conftest import (
    ADMIN,
    DIM,
    OTHER,
    PHOTO,
    by_label,
    expected,
    head,
    put,
    read,
)
from tests.service.conftest import settings_for

pytestmark = pytest.mark.anyio


async def test_the_list(client: httpx.AsyncClient) -> None:
    """The list has each head with its labels, its model and how it was taught."""
    body = (await client.get("/v1/heads", headers=ADMIN)).json()
    mine = body["heads"][0]

    assert ["mine", "two"] == [one["name"] for one in body["heads"]]
    assert (["cat", "dog", "fish"], ["tiny"], {"seed": 0}) == (mine["labels"], mine["served_by"], mine["recipe"])
    assert {} == body["damaged"]


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
