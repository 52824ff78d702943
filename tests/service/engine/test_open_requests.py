"""When the service ends, every request without an answer gets one; an answer that has begun is left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from service.api.middleware import Observe
from service.engine.open_requests import Unanswered
from service.errors import Draining, ServiceError
from service.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def answer(_: Request, error: Exception) -> Response:
    """The status alone."""
    assert isinstance(error, ServiceError)
    return PlainTextResponse(error.detail, error.status)


async def call(unanswered: Unanswered, *, begins: bool) -> tuple[list[Message], asyncio.Task[None]]:
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
    observe = Observe(app, Metrics(model="m", queue_capacity=1), "m", answer, unanswered)
    task = asyncio.create_task(observe(scope, receive, send))
    await asyncio.sleep(0)
    return sent, task


async def test_who_has_no_answer_gets_the_verdict() -> None:
    """As any other error, and the task ends well."""
    unanswered = Unanswered()
    sent, task = await call(unanswered, begins=False)
    assert 1 == len(unanswered)
    unanswered.end(Draining("over"))
    await task

    assert 503 == sent[0]["status"]
    assert b"over" == sent[1]["body"]
    assert 0 == len(unanswered)


async def test_an_answer_that_has_begun_is_left_alone() -> None:
    """Half an answer would be worse than a late one."""
    unanswered = Unanswered()
    sent, task = await call(unanswered, begins=True)
    assert 0 == len(unanswered)
    unanswered.end(Draining("over"))
    await asyncio.sleep(0)

    assert [200] == [message["status"] for message in sent]
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_any_other_cancellation_stays_one() -> None:
    """Only the end of the service has a verdict."""
    unanswered = Unanswered()
    sent, task = await call(unanswered, begins=False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert [] == sent
    assert 0 == len(unanswered)
