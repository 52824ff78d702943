"""When the service ends, every request without an answer gets one; an answer that has begun is left alone."""

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

pytestmark = pytest.mark.anyio
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def call(open_requests: OpenRequests, *, begins: bool) -> tuple[list[Message], asyncio.Task[None]]:
    """One request that never ends by itself, after it may have begun to answer; what was sent, and its task."""
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
    metrics = Metrics(model="m", queue_capacity=1)
    observe = Observe(app, metrics, "m", RouteLabels([]), open_requests, NoTracer())
    task = asyncio.create_task(observe(scope, receive, send))
    await asyncio.sleep(0)
    return sent, task


async def test_who_has_no_answer_gets_the_verdict() -> None:
    """As any other error, and the task ends well."""
    open_requests = OpenRequests()
    sent, task = await call(open_requests, begins=False)
    assert 1 == len(open_requests.tasks)
    open_requests.end(Draining("over"))
    await task

    assert 503 == sent[0]["status"]
    assert b'"detail":"over"' in sent[1]["body"]
    assert 0 == len(open_requests.tasks)


async def test_an_answer_that_has_begun_is_left_alone() -> None:
    """Half an answer would be worse than a late one."""
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
    """Only the end of the service has a verdict."""
    open_requests = OpenRequests()
    sent, task = await call(open_requests, begins=False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert [] == sent
    assert 0 == len(open_requests.tasks)
