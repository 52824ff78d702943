"""When clients disconnect or deadlines pass, their images are not computed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e import raw
from tests.e2e.faults import GO, WAIT, plain
from tests.e2e.server import Server, serving
from tests.e2e.traffic import another_photo
from tests.tiny import photo

VANISHING = 30
DEPTH, RAN = 'vim_queue_depth{class="interactive"}', 'vim_batch_size_sum{model="tiny"}'
GONE, JOINED = 'vim_rejected_total{reason="client_gone"}', "vim_joined_images_total"


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that ends the wait of the image on the device."""
    return tmp_path_factory.mktemp("leaving") / "go"


@pytest.fixture(scope="module")
def server(go: Path, tiny: Path) -> Iterator[Server]:
    """A server whose device can be kept busy."""
    with serving(go.parent, faults={GO: go}, model=tiny, watchdog_ms=600_000) as server:
        yield server


@contextmanager
def occupied(server: Server, go: Path) -> Iterator[None]:
    """Keep the device busy within the block."""
    go.unlink(missing_ok=True)
    server.wait_for(lambda: 0 == server.metric(DEPTH) == server.metric("vim_inflight_batches"))
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(classify, server, plain(WAIT))
        try:
            server.wait_for(lambda: server.metric("vim_inflight_batches"))
            yield
        finally:
            go.touch()
        assert 200 == busy.result().status_code


def classify(server: Server, body: bytes, **headers: str) -> httpx.Response:
    """The answer to this image; header names have underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.url}/v1/classify", content=body, headers=named, timeout=120)


def sent(server: Server, body: bytes) -> socket.socket:
    """The connection of a client that has sent a whole request."""
    connection = raw.connect(server)
    connection.sendall(raw.post("/v1/classify", length=len(body)) + body)
    return connection


def test_images_of_clients_that_left_never_reach_the_device(server: Server, go: Path) -> None:
    """Images of clients that left never reach the device; they are counted, and their slots are free at once."""
    ran, gone, logged = server.metric(RAN), server.metric(GONE), server.log.count('"outcome": "client_gone"')
    with occupied(server, go):
        with ExitStack() as leavers:
            for _ in range(VANISHING):
                leavers.enter_context(sent(server, another_photo()))
            server.wait_for(lambda: server.metric(DEPTH) == 1 + VANISHING)
        server.wait_for(lambda: server.metric(GONE) == gone + VANISHING)
        server.wait_for(lambda: server.metric(DEPTH) == 1)  # while the device is busy with the first image
    assert 200 == classify(server, photo()).status_code

    assert 2 == server.metric(RAN) - ran
    assert gone + VANISHING == server.metric(GONE)
    assert 0 == server.metric(DEPTH)
    assert VANISHING == server.log.count('"outcome": "client_gone"') - logged


def test_nobody_is_harmed_when_the_first_sender_of_an_image_leaves(server: Server, go: Path) -> None:
    """When the first sender of an image leaves, another client with the same image gets its answer, from one run."""
    ran, gone, joined = server.metric(RAN), server.metric(GONE), server.metric(JOINED)
    with ThreadPoolExecutor(1) as pool, occupied(server, go):
        with sent(server, photo()):
            server.wait_for(lambda: server.metric(DEPTH) == 2)
            other = pool.submit(classify, server, photo())
            server.wait_for(lambda: server.metric(DEPTH) == 3)
        server.wait_for(lambda: server.metric(GONE) == gone + 1)

    assert 200 == other.result().status_code
    assert joined + 1 == server.metric(JOINED)
    assert 2 == server.metric(RAN) - ran


def test_a_client_may_set_a_shorter_deadline(server: Server, go: Path) -> None:
    """After a client's shorter deadline it gets 504 and the image does not run; a longer one is cut to the server's."""
    ran = server.metric(RAN)
    with occupied(server, go):
        hurried = classify(server, photo(), X_Request_Timeout_Ms="300")
    patient = classify(server, photo(), X_Request_Timeout_Ms="9" * 30)

    assert (504, "deadline_exceeded") == (hurried.status_code, hurried.json()["code"])
    assert 200 == patient.status_code
    assert 2 == server.metric(RAN) - ran
