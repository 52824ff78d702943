"""Where images are decoded: small ones on the event loop, others in threads, with the same result."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.devices import usage
from service.devices.usage import Usage
from service.engine.engine import Engine
from service.jobs import RequestClass, Result, Task
from service.settings import Settings
from service.system import shared_counts
from service.telemetry.metrics import Metrics
from tests.service.conftest import running, settings_for
from tests.service.engine.fake_backend import FakeBackend

pytestmark = pytest.mark.anyio


def photograph(size: tuple[int, int], kind: str = "JPEG") -> bytes:
    """An image file with a gradient."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(encoded, kind)
    return encoded.getvalue()


SMALL, LARGE, PNG = photograph((200, 150)), photograph((800, 600)), photograph((200, 150), "PNG")


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[Engine]:
    """An engine that is ready and has compiled its decoder."""
    app = create_app(settings_for(tiny_model))
    async with running(app):
        engine: Engine = app.state.engine
        await infer(engine, [LARGE])  # in a thread, which waits for the compiler
        yield engine


async def infer(engine: Engine, images: Sequence[bytes], request_class: RequestClass = "interactive") -> list[Result]:
    """Run a request and return its results."""
    answer = await engine.infer(images, Task("embed"), time.monotonic() + 60, request_class)
    return [one for one in answer.outcomes if isinstance(one, Result)]


def in_threads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[RequestClass]:
    """Record the request classes of all work that is given to threads from now on."""
    given: list[RequestClass] = []
    run = engine.decode_pool.run

    async def counted(request_class: RequestClass, *arguments: object, **options: object) -> object:
        given.append(request_class)
        return await run(request_class, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.decode_pool, "run", counted)
    return given


async def test_only_small_interactive_photographs_need_no_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small interactive photographs are decoded on the event loop, and all others and bulk in threads."""
    given = in_threads(engine, monkeypatch)
    await infer(engine, [SMALL])
    assert [] == given
    await infer(engine, [LARGE, PNG, SMALL])
    assert ["interactive", "interactive"] == given
    await infer(engine, [SMALL], "bulk")
    assert ["interactive", "interactive", "bulk"] == given


async def test_the_answer_does_not_depend_on_where(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding is the same whether an image is decoded on the event loop or in a thread."""
    for file in (SMALL, LARGE):
        (at_once,) = await infer(engine, [file])
        (in_thread,) = await infer(engine, [file], "bulk")

        np.testing.assert_array_equal(in_thread.values, at_once.values)


async def test_many_small_photographs_are_all_answered(engine: Engine) -> None:
    """Many small photographs at once are all answered, except those whose requests are cancelled."""
    files = [photograph((100 + number, 150)) for number in range(60)]
    tasks = [asyncio.create_task(infer(engine, [file])) for file in files]
    await asyncio.sleep(0)
    for task in tasks[::7]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)

    assert len(tasks[::7]) == sum(isinstance(one, asyncio.CancelledError) for one in found)
    assert len(tasks) - len(tasks[::7]) == sum(isinstance(one, list) and len(one) == 1 for one in found)
    assert 0 == engine.backend.slots.in_use


async def test_how_each_process_fares_is_known_to_all(anyio_backend: object) -> None:
    """A process reports whether its threads are overdue and that its event loop runs; the others see it."""
    descriptor = shared_counts.memory(2, usage.NUMBERS)
    counts = [Usage.of(shared_counts.mapped(descriptor, 2, usage.NUMBERS, number)) for number in (0, 1)]
    os.close(descriptor)
    metrics = Metrics(queue_capacity=8)
    one, two = (Engine(Settings(), metrics, FakeBackend(8, usage=each)) for each in counts)
    one.report()
    assert not two.overdue
    counts[0].overdue.own[0] = 1
    assert two.overdue
    one.report()

    assert not two.overdue
    assert [2, 0] == list(counts[1].beats.parts)
