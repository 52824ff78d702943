"""What the client does with a server that says what the test wants it to say: busy, gone, gone in mid-answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from vim_client.client import SMALL_BYTES, Client, ServerError
from vim_client.http import wait_s

Handler = Callable[[httpx.Request], httpx.Response]

VECTOR = base64.b64encode(np.arange(3, dtype="<f4").tobytes()).decode()
IMAGES = [b"one", b"two", b"three"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeps are noted, not slept."""
    noted: list[float] = []

    async def sleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return noted


def answering(handler: Handler, **options: object) -> Client:
    """A client of a made-up server."""
    return Client("http://made.up", transport=httpx.MockTransport(handler), **options)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_wishes(waits: list[float], status: int) -> None:
    """Retry-After is the least wait."""
    said = iter([httpx.Response(status, headers={"Retry-After": "7"}), httpx.Response(200, json={"state": "ready"})])
    with answering(lambda _: next(said)) as client:
        assert {"state": "ready"} == client.info()

    assert [7] == waits


def test_asking_again_has_an_end(waits: list[float]) -> None:
    """The last refusal is the error."""
    refusal = {"code": "queue_full", "detail": "queue full"}
    with (
        answering(lambda _: httpx.Response(429, json=refusal), tries=3) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.info()

    assert ("queue_full", 2) == (caught.value.code, len(waits))


def test_a_lost_connection_is_tried_three_times(waits: list[float]) -> None:
    """Inference keeps nothing, so a request may be sent again."""
    asked = 0

    def broken(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise httpx.RemoteProtocolError("gone")

    with answering(broken) as client, pytest.raises(ServerError, match="no answer from"):
        client.info()

    assert (3, 2) == (asked, len(waits))


def images_in(request: httpx.Request) -> list[bytes]:
    """What a request to /v1/bulk holds."""
    assert "/v1/bulk" == request.url.path
    return [base64.b64decode(json.loads(line)["image"]) for line in request.content.splitlines()]


def line(index: int, status: int = 200, code: str = "draining") -> bytes:
    """An answer's line: a vector, or an error."""
    error = {"error": {"code": code, "message": "a test says so", "status": status}}
    item: dict[str, Any] = {"index": index} | ({"embedding": VECTOR} if status == 200 else error)
    return json.dumps(item).encode() + b"\n"


def stream(*lines: bytes) -> httpx.Response:
    """An answer of these lines."""
    return httpx.Response(200, content=b"".join(lines), headers={"X-Model-Fingerprint": "f"})


class Broken(httpx.AsyncByteStream):
    """An answer whose connection is lost after so much of it."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        raise httpx.ReadError("gone")


def replies(*answers: httpx.Response) -> tuple[Handler, list[list[bytes]]]:
    """A server that gives these answers in turn, and the images that each request held."""
    rest, asked = iter(answers), []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(images_in(request))
        return next(rest)

    return handler, asked


def kinds(answers: Iterator[Any]) -> list[object]:
    """A vector as "ok", an error as its status."""
    return ["ok" if isinstance(one, np.ndarray) else one.status for one in answers]


def test_only_what_was_too_much_for_the_server_is_asked_again(waits: list[float]) -> None:
    """A line that says 503 is no answer; one that says 415 is."""
    handler, asked = replies(stream(line(0), line(1, 503), line(2, 415)), stream(line(0)))
    with answering(handler) as client:
        assert ["ok", "ok", 415] == kinds(client.embed_many(IMAGES))

    assert [IMAGES, [b"two"]] == asked
    assert 1 == len(waits)


@pytest.mark.parametrize("rest", [b"", line(1)[:9]])
def test_what_a_lost_connection_has_brought_is_kept(waits: list[float], rest: bytes) -> None:
    """Half a line is no answer."""
    cut = httpx.Response(200, stream=Broken(line(0), rest), headers={"X-Model-Fingerprint": "f"})
    handler, asked = replies(cut, stream(line(0), line(1)))
    with answering(handler) as client:
        assert ["ok"] * 3 == kinds(client.embed_many(IMAGES))

    assert [IMAGES, IMAGES[1:]] == asked


def test_a_stream_that_ends_too_soon_is_one_that_broke_off(waits: list[float]) -> None:
    """The lines that are missing are asked for again, three times in all; then they have an error."""
    handler, asked = replies(stream(line(0)), stream(), stream())
    with answering(handler) as client:
        first, *others = client.embed_many(IMAGES)

    assert isinstance(first, np.ndarray)
    assert ["unreachable"] * 2 == [one.code for one in others if isinstance(one, ServerError)]
    assert [IMAGES, IMAGES[1:], IMAGES[1:]] == asked


def test_a_group_that_is_refused_comes_back_when_it_may(waits: list[float]) -> None:
    """Retry-After is the least wait here as well."""
    handler, asked = replies(httpx.Response(429, headers={"Retry-After": "7"}), stream(*map(line, range(3))))
    with answering(handler) as client:
        assert ["ok"] * 3 == kinds(client.embed_many(IMAGES))

    assert ([IMAGES] * 2, [7]) == (asked, waits)


def test_asking_for_a_group_has_an_end(waits: list[float]) -> None:
    """Who has no answer by then has the last refusal; who has one keeps it."""
    handler, asked = replies(stream(line(0), line(1, 503), line(2)), stream(line(0, 503)))
    with answering(handler, tries=2) as client:
        assert ["ok", 503, "ok"] == kinds(client.embed_many(IMAGES))

    assert 2 == len(asked)


def test_a_refusal_for_good_is_every_image_s(waits: list[float]) -> None:
    """A wrong key is not tried again."""
    handler, asked = replies(httpx.Response(401, json={"code": "unauthorized", "detail": "no key"}))
    with answering(handler) as client:
        assert [401] * 3 == kinds(client.embed_many(IMAGES))

    assert (1, []) == (len(asked), waits)


def test_many_travel_in_groups_with_the_key(waits: list[float]) -> None:
    """Large ones alone, and so does each if that is wished; all of it in the bulk class, which /v1/bulk always is."""
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


def test_waits_grow_and_stay_bounded() -> None:
    """Without Retry-After, with a date, with nonsense."""
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
    """At least what the server asks for, longer every time, never longer than half a minute."""
    assert seconds == wait_s(attempt, retry_after)
