"""The event loop answers probes while clients send the bodies that cost most, in every contract.

The bound is generous, because test machines are busy; `pytest -s` prints the slowest probe for each body.
"""

from __future__ import annotations

import base64
import functools
import gzip
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server, serving
from tests.tiny import photo

LIMIT = 20 * 1024 * 1024 - 2000  # bytes of a body, VIM_MAX_BODY_BYTES
EVERY_S = 0.01
LONGEST_S = 5.0
OIP = "/v2/models/tiny"
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}
GZIP = {"Content-Encoding": "gzip"}

Body = tuple[str, bytes, dict[str, str]]  # path, content, headers


@functools.cache
def spaced(size: int = LIMIT) -> bytes:
    """Base64 of an image with a blank after every letter, of this many bytes."""
    image = photo().ljust(3 * (size // 8), b"\0")
    return b" ".join(memoryview(base64.b64encode(image)).cast("c"))


def nested(images: int) -> bytes:
    """Images of 224 x 224 pixels as nested lists."""
    pixels = b"[" + b",".join([b"[" + b",".join([b"[200,100,17]"] * 224) + b"]"] * 224) + b"]"
    head = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[%d,224,224,3],"data":[' % images
    return head + b",".join([pixels] * images) + b"]}]}"


def form(parts: int, content: bytes) -> bytes:
    """A form with this many files."""
    head = b'--cut\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    return (head + content + b"\r\n") * parts + b"--cut--\r\n"


def native(image: bytes) -> bytes:
    """A body of the native contract with one image."""
    return b'{"images": ["%s"]}' % image


# The images are small, because decoding is not measured here.
BODIES: dict[str, Callable[[], Body]] = {
    "blanks in base64, native": lambda: ("/v1/classify", native(spaced()), {}),
    "blanks in base64, gzip": lambda: ("/v1/classify", gzip.compress(native(spaced()), 1), GZIP),
    "blanks in base64, 64 images": lambda: (
        "/v1/embed",
        b'{"images": [%s]}' % b",".join([b'"%s"' % spaced(LIMIT // 65)] * 64),
        {},
    ),
    "blanks in base64, OpenAI": lambda: ("/v1/embeddings", b'{"input": {"image": "%s"}}' % spaced(), {}),
    "blanks in base64, Hugging Face": lambda: ("/predict", b'{"inputs": "%s"}' % spaced(), {}),
    "blanks in base64, Weaviate": lambda: ("/vectors", b'{"image": "%s"}' % spaced(), {}),
    "blanks in base64, OIP": lambda: (
        f"{OIP}/infer",
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["%s"]}]}' % spaced(),
        {},
    ),
    "blanks in base64, bulk": lambda: ("/v1/bulk", b'{"image": "%s"}\n' % spaced(), {}),
    "escapes": lambda: ("/v1/classify", native(b"\\u0041" * (LIMIT // 6)), {}),
    "text beyond ASCII": lambda: ("/v1/classify", native("\N{GRINNING FACE}".encode() * (LIMIT // 4)), {}),
    "a data URI without end": lambda: ("/v1/embeddings", b'{"input": "data:%s"}' % (b"x" * LIMIT), {}),
    "nothing but blanks": lambda: ("/v1/classify", b" " * LIMIT, {}),
    "commas": lambda: ("/v1/classify", b'{"images": [' + b"," * LIMIT, {}),
    "deep JSON": lambda: ("/v1/classify", b'{"images": ' + b"[" * LIMIT, {}),
    "deep JSON, OIP": lambda: (f"{OIP}/infer", b"[" * LIMIT, {}),
    "nested numbers": lambda: (f"{OIP}-tensor/infer", nested(4), {}),
    "too many nested numbers": lambda: (f"{OIP}-tensor/infer", nested(30), {}),
    "many members, OIP": lambda: (
        f"{OIP}/infer",
        json.dumps({"inputs": [], "parameters": {f"x{number}": 1 for number in range(9_900)}}).encode(),
        {},
    ),
    "many strings, OIP": lambda: (f"{OIP}/infer", b'{"inputs": [' + b'"abc",' * 499_000 + b'""]}', {}),
    "64 parts": lambda: ("/v1/classify", form(64, photo().ljust(LIMIT // 64 - 100, b"\0")), FORM),
    "parts that are almost boundaries": lambda: ("/v1/classify", form(1, b"\r\n--cu" * (LIMIT // 60)), FORM),
    "many gzip members": lambda: ("/v1/classify", gzip.compress(b"") * 1999, GZIP),
    "blank lines, bulk": lambda: ("/v1/bulk", b"\n" * LIMIT, {}),
    "short lines, bulk": lambda: ("/v1/bulk", b"1\n" * 2000, {}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server with two decoding threads."""
    with serving(tmp_path_factory.mktemp("loop"), model=tiny, threads=2) as running:
        yield running


@contextmanager
def probing(server: Server) -> Iterator[list[float]]:
    """Ask /livez every `EVERY_S` over one connection; the list has the seconds of each answer."""
    host, port = server.url.removeprefix("http://").split(":")
    connection, seconds, end = http.client.HTTPConnection(host, int(port), timeout=60), [0.0], threading.Event()

    def probe() -> None:
        while not end.wait(EVERY_S):
            start = time.perf_counter()
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            assert 200 == answer.status
            seconds.append(time.perf_counter() - start)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(probe)
        try:
            yield seconds
        finally:
            end.set()
            done.result()
            connection.close()


def status_of(server: Server, body: Body) -> int:
    """Send a body; the status of its answer."""
    path, content, headers = body
    return httpx.post(server.url + path, content=content, headers=headers, timeout=300).status_code


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("name", BODIES)
def test_probes_are_answered_while_costly_bodies_arrive(server: Server, name: str, clients: int) -> None:
    """Every costly body is answered without a 5xx, and no probe waits long at the same time."""
    body = BODIES[name]()
    with ThreadPoolExecutor(clients) as pool, probing(server) as seconds:
        start = time.perf_counter()
        statuses = list(pool.map(lambda _: status_of(server, body), range(clients)))
        took = time.perf_counter() - start

    print(f"{name}: {clients} clients: slowest probe {1000 * max(seconds):.0f} ms, {took:.1f} s, status {statuses[0]}")
    assert all(status in (200, 400, 413, 415, 422) for status in statuses)
    assert max(seconds) < LONGEST_S
