"""Identical images share one flight, and nobody in it depends on anybody else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from service.engine.coalescing import LARGE, SMALL, Flight, Flights, key_of
from service.jobs import Job, RequestClass, Task

pytestmark = pytest.mark.anyio


class Field:
    """Where flights start; each lands when told to."""

    def __init__(self) -> None:
        self.started: list[Flight[str]] = []
        self.ended = 0
        self.hurried: list[Job] = []
        self.landing = asyncio.Event()
        self.flights: Flights[str] = Flights(self.hurried.append)

    def send(self, key: str, request_class: RequestClass = "interactive") -> asyncio.Task[tuple[str, bool]]:
        """Someone sends an image."""
        return asyncio.create_task(self.flights.share(key, request_class, self._start, self._end))

    def _start(self, flight: Flight[str]) -> Coroutine[Any, Any, str]:
        self.started.append(flight)
        return self._fly(len(self.started))

    async def _fly(self, number: int) -> str:
        await self.landing.wait()
        return f"flight {number}"

    def _end(self) -> None:
        self.ended += 1


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_identical_images_are_computed_once() -> None:
    """Another image, and the same one once the flight has landed, is a flight of its own."""
    field = Field()
    first, second, other = field.send("cat"), field.send("cat"), field.send("dog")
    await turn()
    field.landing.set()

    assert [("flight 1", False), ("flight 1", True), ("flight 2", False)] == [await first, await second, await other]
    assert ("flight 3", False) == await field.send("cat")
    await turn()
    assert (0, 3) == (len(field.flights), field.ended)


async def test_nobody_is_harmed_when_the_first_sender_leaves() -> None:
    """The flight goes on for the others."""
    field = Field()
    first, second = field.send("cat"), field.send("cat")
    await turn()
    first.cancel()
    await turn()
    third = field.send("cat")
    await turn()
    field.landing.set()

    assert [("flight 1", True)] * 2 == [await second, await third]


async def test_a_flight_that_nobody_waits_for_is_given_up() -> None:
    """It is cancelled, nothing is left behind, and the next sender starts anew; also one that had not begun."""
    field = Field()
    first, second = field.send("cat"), field.send("cat")
    await turn()
    flying = field.started[0].task
    first.cancel()
    second.cancel()
    await turn()

    assert flying.cancelled()
    assert (0, 1) == (len(field.flights), field.ended)
    early = field.send("cat")
    await asyncio.sleep(0)
    early.cancel()
    await turn()
    assert (0, 2) == (len(field.flights), field.ended)


async def test_each_sender_has_a_deadline_of_its_own() -> None:
    """The shorter one does not end the longer one's wait."""
    field = Field()
    patient, hurried = field.send("cat"), field.send("cat")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hurried, 0.01)
    field.landing.set()

    assert ("flight 1", False) == await patient


async def test_the_most_urgent_sender_decides_the_class() -> None:
    """Interactive hurries the job of bulk; while there is none it starts anew; bulk joins whatever flies."""
    field = Field()
    bulk = field.send("cat", "bulk")
    await turn()
    urgent, lazy = field.send("cat"), field.send("cat", "bulk")
    await turn()
    assert ["bulk", "interactive"] == [flight.request_class for flight in field.started]
    assert [] == field.hurried

    third = field.send("dog", "bulk")
    await turn()
    job = field.started[2].job = Job(0, Task("embed"), 0.0, asyncio.get_running_loop().create_future(), "bulk")
    fourth = field.send("dog")
    await turn()
    assert [job] == field.hurried
    assert "interactive" == field.started[2].request_class

    field.landing.set()
    landed = await asyncio.gather(bulk, urgent, lazy, third, fourth)
    assert ["flight 1", "flight 2", "flight 2", "flight 3", "flight 3"] == [result for result, _ in landed]


async def test_a_key_tells_images_apart() -> None:
    """Bytes by their bytes, pixels also by their shape, of whatever size; no image can pass for another's hash."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    assert await key_of(b"cat") == await key_of(b"cat") != await key_of(b"dog")
    assert await key_of(pixels) == await key_of(pixels.copy()) != await key_of(pixels.reshape(4, 2, 3))
    assert await key_of(pixels) == await key_of(np.asfortranarray(pixels))
    for size in (SMALL, LARGE):
        assert await key_of(bytes(size)) == await key_of(bytes(size)) != await key_of(bytes(size + 1))
    assert await key_of(hashlib.sha256(bytes(SMALL)).digest()) != await key_of(bytes(SMALL))
