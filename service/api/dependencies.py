"""What every contract does with a request between parsing and rendering: read the body, run the images, keep the log.

Limits, deadlines, batching, leaving clients and errors are the same whichever contract a request speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request

from service.api.request import body as request_body
from service.api.request import content_encoding
from service.api.request.image_fields import Item
from service.engine.engine import Answer, Engine
from service.jobs import Task

T = TypeVar("T")


def engine_of(request: Request) -> Engine:
    """The application's engine."""
    engine: Engine = request.app.state.engine
    return engine


def model_of(request: Request) -> dict[str, Any]:
    """What `/info` says of the model. Raises NotReady before it is loaded."""
    model: dict[str, Any] = engine_of(request).loaded.info["model"]
    return model


def model_headers(request: Request) -> dict[str, str]:
    """Whose answer it is, for contracts with no place for it in the body."""
    model = model_of(request)
    return {"X-Model-Name": model["name"], "X-Model-Fingerprint": model["fingerprint"]}


async def read_body(request: Request) -> bytes:
    """The whole body, unpacked if it is compressed, within VIM_MAX_BODY_BYTES before and after.

    Raises BodyTooLarge, BodyTimeout, EmptyBody, UnsupportedEncoding, MalformedBody; QueueFull and MemoryFull where
    there is no room for it; InvalidOptions (class).
    """
    engine, request_class = engine_of(request), request_body.request_class(request)
    request.state.request_class = request_class
    account = request.state.body = engine.admission.body(request_class)  # the middleware lets go of it
    limit = engine.settings.max_body_bytes
    body = await request_body.read_body(request, limit, account, engine.settings.body_timeout_ms / 1000)
    request.state.bytes = len(body)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in content_encoding.IDENTITY:
        return body
    unpacked = await in_thread(request, content_encoding.inflate, body, encoding, limit)
    account.receive(max(0, len(unpacked) - account.size))
    return unpacked


async def in_thread(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """Run something that would block the event loop, such as parsing a body, in its class's turn."""
    return await engine_of(request).in_thread(work, *arguments, request_class=request.state.request_class)


async def infer(request: Request, images: Sequence[Item], task: Task, timeout_s: float | None = None) -> Answer:
    """Run the images. `timeout_s` is what the contract itself says of a deadline; the shortest of all counts.

    Raises ServiceError for the request as a whole, ClientDisconnect when the client leaves.
    """
    engine = engine_of(request)
    allowed_s = request_body.timeout_s(request, engine.settings.request_timeout_ms)
    deadline = request.state.started + min(allowed_s, timeout_s or allowed_s)
    work = engine.infer(images, task, deadline, request.state.request_class)
    answer = await request_body.unless_gone(request, work)
    request.state.timings = answer.timings
    request.state.images = len(images)
    request.state.failed_images = answer.failed
    return answer
