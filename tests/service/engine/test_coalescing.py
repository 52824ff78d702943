"""Identical images in flight are computed once, and no request depends on another."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from service.engine.coalescing import LARGE, SMALL, Coalescing, Flight, content_key
from service.jobs import Job, RequestClass, Task

pytestmark = pytest.mark.anyio
TASK = Task("embed")


class Requests:
    """Requests for images; their work ends when `landing` is set."""

    def __init__(self) -> None:
        self.started: list[Flight[str]] = []
        self.ended = 0
        self.landing = asyncio.Event()
        self.coalescing: Coalescing[str] = Coalescing()

    def send(self, image: bytes, request_class: RequestClass = "interactive") -> asyncio.Task[tuple[str, bool]]:
        """Start a request for an image; it returns its result, and whether it joined another one."""
        return asyncio.create_task(self._request(image, request_class))

    async def _request(self, image: bytes, request_class: RequestClass) -> tuple[str, bool]:
        flight = await self.coalescing.enter(image, TASK, request_class)
        joined = flight.task is not None
        if flight.task is None:
            self.started.append(flight)
            flight.task = asyncio.create_task(self._work(len(self.started)))
            flight.task.add_done_callback(self._on_end)
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            self.coalescing.leave(flight)

    async def _work(self, number: int) -> str:
        await self.landing.wait()
        return f"flight {number}"

    def _on_end(self, _: asyncio.Task[str]) -> None:
        self.ended += 1


async def turn() -> None:
    """Run everything on the event loop that is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_identical_images_are_computed_once() -> None:
    """Identical images share one flight; another image, or the same one later, has its own flight."""
    requests = Requests()
    first, second, other = requests.send(b"cat"), requests.send(b"cat"), requests.send(b"dog")
    await turn()
    requests.landing.set()

    assert [("flight 1", False), ("flight 1", True), ("flight 2", False)] == [await first, await second, await other]
    assert ("flight 3", False) == await requests.send(b"cat")
    await turn()
    assert (0, 3) == (len(requests.coalescing), requests.ended)


async def test_nobody_is_harmed_when_the_first_sender_leaves() -> None:
    """When the first request leaves, its flight continues for the others."""
    requests = Requests()
    first, second = requests.send(b"cat"), requests.send(b"cat")
    await turn()
    first.cancel()
    await turn()
    third = requests.send(b"cat")
    await turn()
    requests.landing.set()

    assert [("flight 1", True)] * 2 == [await second, await third]


async def test_a_flight_that_nobody_waits_for_is_given_up() -> None:
    """A flight that no request waits for is cancelled and removed, also before its work has begun."""
    requests = Requests()
    first, second = requests.send(b"cat"), requests.send(b"cat")
    await turn()
    flying = requests.started[0].task
    assert flying is not None
    first.cancel()
    second.cancel()
    await turn()

    assert flying.cancelled()
    assert (0, 1) == (len(requests.coalescing), requests.ended)
    early = requests.send(b"cat")
    await asyncio.sleep(0)
    early.cancel()
    await turn()
    assert (0, 2) == (len(requests.coalescing), requests.ended)


async def test_each_sender_has_a_deadline_of_its_own() -> None:
    """A request that reaches its deadline does not end the wait of another request."""
    requests = Requests()
    patient, hurried = requests.send(b"cat"), requests.send(b"cat")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hurried, 0.01)
    requests.landing.set()

    assert ("flight 1", False) == await patient


async def test_an_interactive_request_makes_its_flight_interactive() -> None:
    """An interactive request joins a bulk flight that has a job; without a job it starts its own flight."""
    requests = Requests()
    bulk = requests.send(b"cat", "bulk")
    await turn()
    urgent, lazy = requests.send(b"cat"), requests.send(b"cat", "bulk")
    await turn()
    assert ["bulk", "interactive"] == [flight.request_class for flight in requests.started]

    third = requests.send(b"dog", "bulk")
    await turn()
    job = Job(0, TASK, 0.0, asyncio.get_running_loop().create_future(), "bulk")
    requests.started[2].job = job
    fourth = requests.send(b"dog")
    await turn()
    assert ("bulk", "interactive") == (job.request_class, requests.started[2].request_class)

    requests.landing.set()
    done = await asyncio.gather(bulk, urgent, lazy, third, fourth)
    assert ["flight 1", "flight 2", "flight 2", "flight 3", "flight 3"] == [result for result, _ in done]


async def test_tasks_are_told_apart() -> None:
    """The same image for two different tasks is computed twice."""
    coalescing: Coalescing[str] = Coalescing()
    first = await coalescing.enter(b"cat", Task("embed"), "interactive")

    assert first is not await coalescing.enter(b"cat", Task("classify"), "interactive")
    assert first is await coalescing.enter(b"cat", Task("embed"), "interactive")


async def test_a_key_tells_images_apart() -> None:
    """Different bytes, pixels and shapes have different keys, and equal ones have equal keys."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    assert await content_key(b"cat") == await content_key(b"cat") != await content_key(b"dog")
    assert await content_key(pixels) == await content_key(pixels.copy()) != await content_key(pixels.reshape(4, 2, 3))
    assert await content_key(pixels) == await content_key(np.asfortranarray(pixels))
    for size in (SMALL, LARGE):
        assert await content_key(bytes(size)) == await content_key(bytes(size)) != await content_key(bytes(size + 1))
    assert await content_key(hashlib.sha256(bytes(SMALL)).digest()) != await content_key(bytes(SMALL))
