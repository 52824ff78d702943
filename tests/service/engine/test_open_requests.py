"""At the end of the service every request without an answer gets an error; others are not interrupted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.middleware import Observe, RouteLabels
from service.engine.open_requests import OpenRequests
from service.errors import Draining
from service.telemetry.metrics import Metrics
from service.telemetry.tracer import NoTracer
from tests.service.engine.fake_backend import FakeBackend

pytestmark = pytest.mark.anyio
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def call(open_requests: OpenRequests, *, begins: bool) -> tuple[list[Message], asyncio.Task[None]]:
    """Start a request that never ends by itself; returns the messages that it sends, and its task."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send(START)
        await asyncio.sleep(60)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/any", "headers": []}
    metrics = Metrics(queue_capacity=1)
    observe = Observe(app, metrics, RouteLabels([]), open_requests, NoTracer(), FakeBackend())
    task = asyncio.create_task(observe(scope, receive, send))
    await asyncio.sleep(0)
    return sent, task


async def test_who_has_no_answer_gets_the_verdict() -> None:
    """A request without an answer gets the verdict as its error, and its task ends normally."""
    open_requests = OpenRequests()
    sent, task = await call(open_requests, begins=False)
    assert 1 == len(open_requests.tasks)
    open_requests.end(Draining("over"))
    await task

    assert 503 == sent[0]["status"]
    assert b'"detail":"over"' in sent[1]["body"]
    assert 0 == len(open_requests.tasks)


async def test_an_answer_that_has_begun_is_left_alone() -> None:
    """A request whose answer has begun is not interrupted."""
    open_requests = OpenRequests()
    sent, task = await call(open_requests, begins=True)
    assert 0 == len(open_requests.tasks)
    open_requests.end(Draining("over"))
    await asyncio.sleep(0)

    assert [200] == [message["status"] for message in sent]
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_any_other_cancellation_stays_one() -> None:
    """A task that is cancelled for another reason stays cancelled and sends nothing."""
    open_requests = OpenRequests()
    sent, task = await call(open_requests, begins=False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert [] == sent
    assert 0 == len(open_requests.tasks)
