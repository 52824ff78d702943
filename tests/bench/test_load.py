"""The closed loop of `bench.service` sends the given number of different images, and stops at an error."""

from __future__ import annotations

import asyncio

import pytest

from bench.load import Latencies, closed_loop
from tests.bench.serve.servers import OK, Answer, Scripted, scripted

BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nwhy?"


def sent(answer: Answer) -> tuple[Latencies, Scripted]:
    """The latencies and requests of three clients that send six requests with two images."""

    async def both() -> tuple[Latencies, Scripted]:
        async with scripted(answer) as server:
            url = f"http://127.0.0.1:{server.port}"
            return await closed_loop(url, "/v1/classify", [b"cat", b"dog"], clients=3, requests=6), server

    return asyncio.run(both())


def test_every_request_is_timed_and_differs() -> None:
    """Every request is timed and has an image of its own, since identical images are computed once."""
    found, server = sent(lambda _: OK)

    assert (6, 6) == (len(found.seconds), len(set(server.bodies)))
    assert found.elapsed_s >= max(found.seconds)
    assert {b"cat", b"dog"} == {body[:-8] for body in server.bodies}
    assert all(head.startswith("POST /v1/classify ") for head in server.heads)


def test_an_error_ends_the_benchmark() -> None:
    """An error ends the benchmark, since error answers are quick."""
    with pytest.raises(ExceptionGroup) as caught:
        sent(lambda number: BROKEN if number == 2 else OK)

    assert ["500: why?"] == [str(error) for error in caught.value.exceptions]
