"""The client and a server that is busy, unreachable, or cuts off its response. The responses are made up."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from vim_client import Client, ServerError, UnreachableError
from vim_client.client import SMALL_BYTES
from vim_client.http import wait_s

Handler = Callable[[httpx.Request], httpx.Response]

VECTOR = base64.b64encode(np.arange(3, dtype="<f4").tobytes()).decode()
IMAGES = [b"one", b"two", b"three"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each sleep of the client; the sleep is replaced."""
    noted: list[float] = []

    async def sleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return noted


def answering(handler: Handler, **options: object) -> Client:
    """A client of a simulated server; `handler` answers its requests."""
    return Client("http://made.up", transport=httpx.MockTransport(handler), **options)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_gets_the_request_again_after_retry_after(waits: list[float], status: int) -> None:
    """The client waits at least as long as Retry-After says, then repeats the request."""
    said = iter([httpx.Response(status, headers={"Retry-After": "7"}), httpx.Response(200, json={"state": "ready"})])
    with answering(lambda _: next(said)) as client:
        assert {"state": "ready"} == client.info()

    assert [7] == waits


def test_the_number_of_tries_is_limited(waits: list[float]) -> None:
    """After `tries` refusals the client raises the last one as ServerError."""
    refusal = {"code": "queue_full", "detail": "queue full"}
    with (
        answering(lambda _: httpx.Response(429, json=refusal), tries=3) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.info()

    assert ("queue_full", 2) == (caught.value.code, len(waits))


def test_a_lost_connection_is_tried_three_times(waits: list[float]) -> None:
    """The client sends a request three times when the connection is lost, then raises ServerError."""
    asked = 0

    def broken(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise httpx.RemoteProtocolError("gone")

    with answering(broken) as client, pytest.raises(ServerError, match="no answer from"):
        client.info()

    assert (3, 2) == (asked, len(waits))


def test_a_refused_connection_is_one_line() -> None:
    """If no server listens, the message has the address and the reason, without a library's traceback."""
    with Client("http://127.0.0.1:9", tries=1) as client, pytest.raises(UnreachableError) as caught:
        client.info()

    assert ("unreachable", 0) == (caught.value.code, caught.value.status)
    assert "no answer from http://127.0.0.1:9: All connection attempts failed" == str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_another_program_at_the_address_is_an_error_of_the_client(body: bytes) -> None:
    """A response that this server does not give raises ServerError with the address."""
    with (
        answering(lambda _: httpx.Response(200, content=body)) as client,
        pytest.raises(ServerError, match=r"v1/classify.* does not answer as this server does"),
    ):
        client.classify(b"image")


def images_in(request: httpx.Request) -> list[bytes]:
    """The images of a request to /v1/bulk."""
    assert "/v1/bulk" == request.url.path
    return [base64.b64decode(json.loads(line)["image"]) for line in request.content.splitlines()]


def line(index: int, status: int = 200, code: str = "draining") -> bytes:
    """A line of a response of /v1/bulk: a vector, or an error."""
    error = {"error": {"code": code, "message": "a test says so", "status": status}}
    item: dict[str, Any] = {"index": index} | ({"embedding": VECTOR} if status == 200 else error)
    return json.dumps(item).encode() + b"\n"


def stream(*lines: bytes) -> httpx.Response:
    """A response of /v1/bulk with these lines."""
    return httpx.Response(200, content=b"".join(lines), headers={"X-Model-Fingerprint": "f"})


class Broken(httpx.AsyncByteStream):
    """A response whose connection is lost after these parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        raise httpx.ReadError("gone")


def replies(*answers: httpx.Response) -> tuple[Handler, list[list[bytes]]]:
    """A handler that returns these responses in turn, and the images of each request."""
    rest, asked = iter(answers), []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(images_in(request))
        return next(rest)

    return handler, asked


def kinds(answers: Iterator[Any]) -> list[object]:
    """Each vector as "ok", each error as its status."""
    return ["ok" if isinstance(one, np.ndarray) else one.status for one in answers]


def test_only_the_images_refused_as_busy_are_sent_again(waits: list[float]) -> None:
    """The client repeats the request for an image whose line says 503, not for one whose line says 415."""
    handler, asked = replies(stream(line(0), line(1, 503), line(2, 415)), stream(line(0)))
    with answering(handler) as client:
        assert ["ok", "ok", 415] == kinds(client.embed_many(IMAGES))

    assert [IMAGES, [b"two"]] == asked
    assert 1 == len(waits)


@pytest.mark.parametrize("rest", [b"", line(1)[:9]])
def test_answers_before_a_lost_connection_are_kept(waits: list[float], rest: bytes) -> None:
    """After a lost connection the client requests only the images whose complete line had not arrived."""
    cut = httpx.Response(200, stream=Broken(line(0), rest), headers={"X-Model-Fingerprint": "f"})
    handler, asked = replies(cut, stream(line(0), line(1)))
    with answering(handler) as client:
        assert ["ok"] * 3 == kinds(client.embed_many(IMAGES))

    assert [IMAGES, IMAGES[1:]] == asked


def test_a_stream_that_ends_too_soon_counts_as_a_lost_connection(waits: list[float]) -> None:
    """If lines are missing at the end of a stream, the client requests those images three times, then yields errors."""
    handler, asked = replies(stream(line(0)), stream(), stream())
    with answering(handler) as client:
        first, *others = client.embed_many(IMAGES)

    assert isinstance(first, np.ndarray)
    assert ["unreachable"] * 2 == [one.code for one in others if isinstance(one, ServerError)]
    assert [IMAGES, IMAGES[1:], IMAGES[1:]] == asked


def test_a_refused_group_is_sent_again_after_retry_after(waits: list[float]) -> None:
    """The client repeats a refused group not before its Retry-After."""
    handler, asked = replies(httpx.Response(429, headers={"Retry-After": "7"}), stream(*map(line, range(3))))
    with answering(handler) as client:
        assert ["ok"] * 3 == kinds(client.embed_many(IMAGES))

    assert ([IMAGES] * 2, [7]) == (asked, waits)


def test_the_number_of_tries_of_a_group_is_limited(waits: list[float]) -> None:
    """After `tries` requests an image without an answer gets the last refusal; the others keep their answers."""
    handler, asked = replies(stream(line(0), line(1, 503), line(2)), stream(line(0, 503)))
    with answering(handler, tries=2) as client:
        assert ["ok", 503, "ok"] == kinds(client.embed_many(IMAGES))

    assert 2 == len(asked)


def test_a_final_refusal_of_a_group_is_the_answer_for_each_image(waits: list[float]) -> None:
    """Every image gets the error when the server rejects the API key; the client does not repeat the request."""
    handler, asked = replies(httpx.Response(401, json={"code": "unauthorized", "detail": "no key"}))
    with answering(handler) as client:
        assert [401] * 3 == kinds(client.embed_many(IMAGES))

    assert (1, []) == (len(asked), waits)


def test_many_images_are_sent_in_groups_with_the_key(waits: list[float]) -> None:
    """Small images share a request, large ones do not; `group=1` gives each its own. Each has key and class."""
    seen: list[tuple[str, str | None, int]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert "Bearer secret" == request.headers["authorization"]
        if request.url.path == "/v1/embed":
            seen.append(("embed", request.headers.get("x-request-class"), 1))
            return httpx.Response(200, content=np.ones(3, "<f4").tobytes())
        seen.append(("bulk", None, len(images_in(request))))
        return stream(*map(line, range(len(images_in(request)))))

    with answering(handler, api_key="secret", group=4) as client:
        assert ["ok"] * 9 == kinds(client.embed_many([*IMAGES, bytes(SMALL_BYTES + 1), *IMAGES, b"four", b"nine"]))
    with answering(handler, api_key="secret", group=1) as client:
        assert ["ok"] * 2 == kinds(client.embed_many(IMAGES[:2]))
        client.embed(b"for somebody who waits")

    assert sorted(seen[:4]) == [("bulk", None, 3), ("bulk", None, 4), ("embed", "bulk", 1), ("embed", "bulk", 1)]
    assert [("embed", "bulk", 1)] * 2 + [("embed", None, 1)] == seen[4:]


def test_the_model_is_sent_only_if_it_is_named(tmp_path: Path) -> None:
    """Every request names the model of its call, or else that of the client; older servers get no such option."""
    seen: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.url.params.get("model")))
        return httpx.Response(404, json={"code": "model_not_found", "detail": "no such model"})

    def ask(client: Client, **options: Any) -> list[str | None]:
        seen.clear()
        for call in (client.info, partial(client.classify, b"one"), partial(client.embed, b"one")):
            with pytest.raises(ServerError, match="404 model_not_found: no such model"):
                call(**options)
        large = bytes(SMALL_BYTES + 1)
        for many in (client.classify_many, client.embed_many):
            assert [404] * 3 == kinds(many([b"one", b"two", large], **options))
        client.embed_folder(tmp_path, tmp_path / "out", progress=False, **options)
        assert {"/info", "/v1/classify", "/v1/embed", "/v1/bulk"} == {path for path, _ in seen}
        assert 8 == len(seen)
        return [*{model for _, model in seen}]

    (tmp_path / "a.jpg").write_bytes(b"image")
    with answering(handler) as client:
        assert [None] == ask(client)
        assert [None] == ask(client, model=None)
        assert ["mine"] == ask(client, model="mine")
    with answering(handler, model="ours") as client:
        assert ["ours"] == ask(client)
        assert ["mine"] == ask(client, model="mine")


def test_waits_grow_up_to_a_limit() -> None:
    """The wait doubles with each try up to 30 s; a Retry-After that is past or invalid has no effect."""
    assert [0.25, 0.5, 1.0] == [wait_s(attempt, None) for attempt in range(3)]
    assert 30 == wait_s(0, "3600") == wait_s(20, None)
    assert 0.25 == wait_s(0, "soon") == wait_s(0, "Mon, 01 Jan 2024 00:00:00 GMT")


@pytest.mark.parametrize(
    ("attempt", "retry_after", "seconds"),
    [
        (0, None, 0.25),
        (3, None, 2),
        (0, "7", 7),
        (3, "1", 2),
        (0, "100000", 30),
        (9, None, 30),
        (0, "soon", 0.25),
        (0, "Fri, 01 Jan 2100 00:00:00 GMT", 30),
        (0, "Sat, 01 Jan 2000 00:00:00 GMT", 0.25),
        (0, "Sat, 01 Jan 2000 00:00:00 -0000", 0.25),
    ],
)
def test_how_long_to_wait(attempt: int, retry_after: str | None, seconds: float) -> None:
    """The wait is at least Retry-After, grows with each try, and is 30 s at most."""
    assert seconds == wait_s(attempt, retry_after)
