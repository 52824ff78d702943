"""Weaviate's requests, byte for byte, over a plain HTTP client, because Weaviate is a Go program and not a package."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from typing import Any

import pytest

from tests.clients import native
from tests.clients.pictures import picture
from tests.clients.servers import MAX_BODY, Servers

PNG = picture()
TEXT = base64.b64encode(PNG).decode()


def send(url: str, method: str, path: str, body: Any = None, timeout: float = 120) -> tuple[int, bytes]:
    """Send a request as Go's net/http does by default, without a Content-Type."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    data = None if body is None else json.dumps(body).encode()
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.putheader("User-Agent", "Go-http-client/1.1")
    if data is not None:
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def refused(url: str, path: str, body: Any) -> tuple[int, str]:
    """Status and `error`; Weaviate parses the body whatever the status."""
    status, content = send(url, "POST", path, body)
    error = json.loads(content)["error"]
    assert isinstance(error, str)
    return status, error


def test_img2vec_neural(servers: Servers) -> None:
    """POST /vectors gives the embedding of one image."""
    status, content = send(servers.normal, "POST", "/vectors", {"id": "7c1f", "image": TEXT})
    found = json.loads(content)

    assert (200, "7c1f", 32) == (status, found["id"], found["dim"])
    assert native.embedding(servers.normal, PNG) == pytest.approx(found["vector"], abs=native.TOLERANCE)


def test_multi2vec_clip(servers: Servers) -> None:
    """POST /vectorize returns a vector for each image; equal images have equal vectors."""
    status, content = send(servers.normal, "POST", "/vectorize", {"texts": [], "images": [TEXT, TEXT]})
    found = json.loads(content)

    assert (200, []) == (status, found["textVectors"])
    for vector in found["imageVectors"]:
        assert native.embedding(servers.normal, PNG) == pytest.approx(vector, abs=native.TOLERANCE)


def test_probes(servers: Servers) -> None:
    """The probes answer 204 when ready and 503 before, and /meta is an object."""
    assert (204, b"") == send(servers.normal, "GET", "/.well-known/ready")
    assert (204, b"") == send(servers.starting, "GET", "/.well-known/live")
    assert 503 == send(servers.starting, "GET", "/.well-known/ready")[0]
    assert isinstance(json.loads(send(servers.normal, "GET", "/meta")[1]), dict)


def test_ready_under_load(servers: Servers) -> None:
    """While twelve clients send images every probe is answered 204; -s prints the times (Weaviate waits 0.5 s)."""
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            send(servers.normal, "POST", "/vectorize", {"images": [TEXT] * 4})

    threads = [threading.Thread(target=load) for _ in range(12)]
    for thread in threads:
        thread.start()
    took = []
    for _ in range(50):
        start = time.monotonic()
        assert 204 == send(servers.normal, "GET", "/.well-known/ready")[0]
        took.append(time.monotonic() - start)
    stop.set()
    for thread in threads:
        thread.join()
    print(f"ready under load: median {1000 * sorted(took)[25]:.0f} ms, slowest {1000 * max(took):.0f} ms")


def test_errors(servers: Servers) -> None:
    """Each error has its message in `error`."""
    cases = [
        (refused(servers.normal, "/vectorize", {"texts": ["a cat"]}), 400, "vision-only"),
        (refused(servers.normal, "/vectors", {"id": "1", "image": "junk"}), 415, "not an image"),
        (refused(servers.normal, "/vectors", {"id": "1", "image": "A" * MAX_BODY}), 413, "VIM_MAX_BODY_BYTES"),
        (refused(servers.normal, "/vectorize", {"images": [TEXT] * 5}), 413, "VIM_MAX_IMAGES"),
        (refused(servers.starting, "/vectors", {"id": "1", "image": TEXT}), 503, "being loaded"),
    ]
    with servers.held_full():
        cases.append((refused(servers.full, "/vectors", {"id": "1", "image": TEXT}), 429, "VIM_QUEUE_IMAGES"))

    for (found, error), status, says in cases:
        assert status == found
        assert says in error
