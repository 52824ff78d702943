"""Versions of models are loaded under traffic: no request is lost, and no answer mixes two versions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e import reloading
from tests.e2e.reloading import HEADERS, Traffic, another_device_process, clients, load, serving_version
from tests.e2e.server import Server

pytestmark = pytest.mark.anyio
Expected = dict[reloading.Key, np.ndarray]


TWO = pytest.param(2, marks=pytest.mark.slow)  # HTTP processes
BOTH, ONE = [1, TWO], [pytest.param(1, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two models, with one and with two HTTP processes."""
    folder = tmp_path_factory.mktemp("reload")
    repository = reloading.write_repository(folder / "models")
    server = reloading.start(folder / "log", repository, http_workers=request.param, max_restarts=50)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server; both models serve."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for model in reloading.MODELS:
            while (await client.get(f"/v2/models/{model}/ready")).status_code != 200:
                await asyncio.sleep(0.1)
        yield client


@pytest.fixture(scope="module")
async def expected(client: httpx.AsyncClient) -> Expected:
    """The answers of every version."""
    return await reloading.learn(client)


@pytest.mark.parametrize("server", BOTH, indirect=True)
async def test_no_request_is_lost_and_no_answer_is_mixed(
    server: Server, client: httpx.AsyncClient, expected: Expected
) -> None:
    """Clients of two models get right answers during two reloads, from the old version and then from the new one."""
    traffic = Traffic(expected)
    async with clients(server.url, 8, traffic):
        await asyncio.sleep(0.5)
        for model in reloading.MODELS:
            (await load(client, model, 2)).raise_for_status()
        await asyncio.sleep(0.5)

    assert ([], [], 0) == (traffic.wrong, traffic.lost, traffic.broken)
    assert 4 == len(traffic.answered)


@pytest.mark.parametrize("server", ONE, indirect=True)
async def test_a_version_that_cannot_be_loaded_changes_nothing(
    server: Server, client: httpx.AsyncClient, expected: Expected
) -> None:
    """A broken version 3 is refused with the reason, which the index keeps; the version that serves goes on."""
    traffic = Traffic(expected)
    await load(client, "a", 2)
    repository = Path((await client.get("/info")).json()["model"]["source"]).parents[1]
    broken = repository / "a" / "3"
    broken.mkdir()
    (broken / "config.json").write_bytes((repository / "a" / "2" / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"not tensors")
    try:
        async with clients(server.url, 4, traffic):
            response = await load(client, "a", 3)
        index = (await client.post("/v2/repository/index", headers=HEADERS)).json()
    finally:
        for file in broken.iterdir():
            file.unlink()
        broken.rmdir()

    assert (400, "load_failed") == (response.status_code, response.json()["code"])
    assert ([], []) == (traffic.wrong, traffic.lost)
    states = {(one["name"], one["version"]): (one["state"], bool(one["reason"])) for one in index}
    assert ("UNAVAILABLE", True) == states["a", "3"]
    assert ("READY", False) == states["a", "2"]


@pytest.mark.parametrize("server", ONE, indirect=True)
async def test_a_loading_process_that_is_killed_changes_nothing(
    server: Server, client: httpx.AsyncClient, expected: Expected
) -> None:
    """The device process of the new version is killed: the load fails, and the old version goes on."""
    traffic = Traffic(expected)
    async with clients(server.url, 4, traffic):
        before = server.children()
        loading = asyncio.create_task(load(client, "b", 1))
        os.kill(await another_device_process(server, before), signal.SIGKILL)
        response = await loading

    assert (400, "load_failed") == (response.status_code, response.json()["code"])
    assert ([], []) == (traffic.wrong, traffic.lost)
    assert 2 == len(traffic.answered)


@pytest.mark.parametrize("server", ONE, indirect=True)
async def test_a_serving_process_that_is_killed_during_a_load_loses_nothing(
    server: Server, client: httpx.AsyncClient, expected: Expected
) -> None:
    """The device process of the old version is killed while the new one loads: no request is lost."""
    traffic = Traffic(expected)
    async with clients(server.url, 4, traffic):
        before = server.children()
        loading = asyncio.create_task(load(client, "b", 1))
        await another_device_process(server, before)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        response = await loading

    assert 200 == response.status_code
    assert ([], []) == (traffic.wrong, traffic.lost)


@pytest.mark.parametrize("server", [TWO], indirect=True)
async def test_an_http_process_that_is_killed_during_a_load_holds_up_nothing(
    server: Server, client: httpx.AsyncClient, expected: Expected
) -> None:
    """One of two HTTP processes is killed during a load: its connections break, and the others see the new version."""
    http = server.http_processes()
    traffic = Traffic(expected)
    other = 3 - await serving_version(client, "b")
    async with clients(server.url, 8, traffic):
        loading = asyncio.create_task(load(client, "b", other))
        await asyncio.sleep(0.5)
        os.kill(http.pop(), signal.SIGKILL)
        with contextlib.suppress(httpx.TransportError):  # the process that was asked may be the one that is killed
            await loading
        async with asyncio.timeout(60):
            while await serving_version(client, "b") != other:
                await asyncio.sleep(0.1)

    assert ([], []) == (traffic.wrong, traffic.lost)
    assert traffic.broken <= 8
