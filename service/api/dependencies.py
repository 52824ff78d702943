"""What every contract needs of the application: the engine, the model, threads, and one way to run images.

Limits, deadlines, batching, leaving clients and errors are the same for every contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.api.record import KEY, RequestRecord
from service.engine.engine import Answer, Engine
from service.errors import InvalidOptions
from service.jobs import Item, Task
from service.status import ModelInfo

T = TypeVar("T")


def engine_of(request: Request) -> Engine:
    """The application's engine."""
    engine: Engine = request.app.state.engine
    return engine


def model_of(request: Request) -> ModelInfo:
    """The model that is served. Raises NotReady before it is loaded."""
    return engine_of(request).model


def model_headers(model: ModelInfo) -> dict[str, str]:
    """Which model answered, for contracts whose bodies have no place for it."""
    return {"X-Model-Name": model.name, "X-Model-Fingerprint": model.fingerprint}


async def in_thread(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """Run something that would block the event loop, such as parsing a body, in the turn of its request class."""
    record: RequestRecord = request.scope[KEY]
    return await engine_of(request).decode_pool.run(record.request_class or "interactive", work, *arguments)


async def infer(request: Request, images: Sequence[Item], task: Task, timeout_s: float | None = None) -> Answer:
    """Run the images. `timeout_s` is the deadline in the request's body, if the contract has one; the shortest counts.

    Raises ServiceError for the request as a whole, ClientDisconnect when the client leaves.
    """
    engine: Engine = request.app.state.engine
    record: RequestRecord = request.scope[KEY]
    allowed_s = _timeout_s(request, engine.settings.request_timeout_ms)
    deadline = record.started + min(allowed_s, timeout_s or allowed_s)
    work = engine.infer(images, task, deadline, record.request_class or "interactive")
    answer = await _unless_gone(request, work)
    record.timings = answer.timings
    record.images, record.failed_images = len(images), answer.failed
    return answer


def _timeout_s(request: Request, longest_ms: int) -> float:
    """Seconds for an answer: `X-Request-Timeout-Ms`, at most VIM_REQUEST_TIMEOUT_MS. Raises InvalidOptions."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return longest_ms / 1000
    if not given.isascii() or not given.isdigit() or int(given[:12]) < 1:
        raise InvalidOptions(
            f"X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1; got {given[:40]!r}"
        )
    return min(int(given[:12]), longest_ms) / 1000


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; when the client leaves before that, the work is cancelled and ClientDisconnect raised.

    Only after the body has been read: until then the same messages are the body.
    """
    serving = asyncio.current_task()
    assert serving is not None
    gone = asyncio.create_task(_cancel_when_gone(request, serving))
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done():  # cancelled by somebody else
            raise
        serving.uncancel()
        raise ClientDisconnect from None
    finally:
        gone.cancel()


async def _cancel_when_gone(request: Request, serving: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    serving.cancel()
