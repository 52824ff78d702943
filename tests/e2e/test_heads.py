"""Custom heads with two HTTP processes: a replaced head is used everywhere at once, and no answer mixes two."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import Head
from tests.e2e.server import Server, serving
from tests.tiny import photo

REPLACEMENTS, CLIENTS, CONNECTIONS = 20, 6, 6
ADMIN = {"Authorization": "Bearer admin-key-of-the-test"}
PHOTO = photo(1)
DIM = 32

Tables = dict[str, list[float]]  # fingerprint of a version -> its scores, by index


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, tiny: object) -> Iterator[Server]:
    """A server with two HTTP processes, and with custom heads."""
    directory = tmp_path_factory.mktemp("heads")
    heads, key = directory / "heads", ADMIN["Authorization"].split()[1]
    with serving(directory, model=tiny, http_workers=2, heads_dir=heads, admin_keys=key) as server:
        yield server


def versions(server: Server) -> tuple[list[Head], Tables]:
    """Versions of a head whose answers differ, and their scores for the photograph."""
    fingerprint = server.info()["model"]["fingerprint"]
    answer = httpx.post(f"{server.url}/v1/embed?normalize=false", content=PHOTO, timeout=60).json()
    embedding = np.array(answer["results"][0]["embedding"])
    heads, tables = [], {}
    for version in range(REPLACEMENTS + 1):
        weight = np.random.default_rng(version).normal(size=(3, DIM)).astype(np.float32)
        head = Head(weight, np.zeros(3, np.float32), (f"a{version}", f"b{version}", f"c{version}"), fingerprint)
        exponentials = np.exp(weight.astype(np.float64) @ embedding)
        heads.append(head)
        tables[head.fingerprint] = list(exponentials / exponentials.sum())
    return heads, tables


def put(server: Server, head: Head) -> None:
    """Replace the head."""
    response = httpx.put(f"{server.url}/v1/heads/mine", content=head.to_bytes(), headers=ADMIN, timeout=60)
    assert 200 == response.status_code, response.text


def checked(body: dict[str, Any], tables: Tables) -> str:
    """The fingerprint of an answer, whose scores and labels must all be of that version."""
    (fingerprint,) = body["heads"].values()
    (result,) = body["results"]
    version = list(tables).index(fingerprint)
    for one in result["predictions"]:
        assert one["score"] == pytest.approx(tables[fingerprint][one["index"]], abs=1e-5)
        assert one["label"] == f"{'abc'[one['index']]}{version}"
    return str(fingerprint)


@pytest.mark.slow
def test_a_head_is_replaced_under_load(server: Server) -> None:
    """Of many answers during 20 replacements none is lost, and none mixes two versions.

    After each replacement has been answered, new connections, to both processes, get the new version, and so does a
    process that was started later.
    """
    heads, tables = versions(server)
    put(server, heads[0])
    over, failures, counts = threading.Event(), list[BaseException](), [0] * CLIENTS

    def ask(number: int) -> None:
        try:
            with server.client() as client:
                while not over.is_set():
                    response = client.post("/v1/classify?head=mine", content=PHOTO)
                    assert 200 == response.status_code, response.text
                    checked(response.json(), tables)
                    counts[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for head in heads[1:]:
            put(server, head)
            for _ in range(CONNECTIONS):
                body = httpx.post(f"{server.url}/v1/classify?head=mine", content=PHOTO, timeout=60).json()
                assert head.fingerprint == checked(body, tables)
    finally:
        over.set()
        for thread in threads:
            thread.join()

    assert [] == failures
    assert min(counts) > 0


def test_a_process_that_starts_later_has_the_heads(server: Server) -> None:
    """After an HTTP process was killed, the one in its place uses the heads that were sent before."""
    heads, tables = versions(server)
    put(server, heads[0])
    put(server, heads[1])
    for pid in server.http_processes():
        os.kill(pid, signal.SIGKILL)
    server.wait_for(lambda: server.log.count("Application startup complete") >= 4)
    for _ in range(CONNECTIONS):
        body = httpx.post(f"{server.url}/v1/classify?head=mine", content=PHOTO, timeout=60).json()
        assert heads[1].fingerprint == checked(body, tables)
