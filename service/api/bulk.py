"""Many images through one connection: NDJSON in, NDJSON out, in order, each image with its own result or error.

Nothing is collected: a few images are on their way at once, and a full queue, or memory full of bodies, makes the
stream wait instead of refusing it. All of it is of class bulk. A client must read while it sends; one that cannot keeps
its requests short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import dependencies, responses
from service.api.request import body as request_body
from service.api.request import content_encoding
from service.api.request.image_fields import Item, from_text
from service.api.request.json_body import load_texts
from service.api.responses import to_json
from service.api.schemas import EmbedOptions, Responses, problems, query
from service.engine.engine import Outcome
from service.errors import BodyTimeout, BodyTooLarge, MalformedBody, QueueFull, ServiceError, UnsupportedEncoding, bare
from service.jobs import Task

router = APIRouter(tags=["native"])

NDJSON = "application/x-ndjson"
IN_FLIGHT = 16  # images of one stream at once
LONGEST_PAUSE_S, SHORT_PAUSE_S = 1.0, 0.1

Waiting = asyncio.Queue[asyncio.Task[bytes] | None]  # answers on their way, in order; None is the end


class BulkOptions(EmbedOptions):
    """Options of /v1/bulk, in the query; those of both operations."""

    op: Literal["classify", "embed"] = Field("embed", description="What is wanted of each image.")
    top_k: int = Field(5, ge=1, description="With `classify`: how many classes; clamped to the number of classes.")

    @property
    def task(self) -> Task:
        """For the device."""
        return Task("classify") if self.op == "classify" else Task("embed", self.pooling)


_TEXT = {"type": "string"}
_LINES = {NDJSON: {"schema": _TEXT | {"description": 'Lines of {"id": any, "image": base64}.'}}}
_ANSWER: Responses = {200: {"content": {NDJSON: {"schema": _TEXT}}, "description": "A line for each image."}}
_EXTRA = {
    "parameters": query(BulkOptions),
    "requestBody": {"required": False, "content": _LINES},
}


@router.post(
    "/v1/bulk", response_class=Response, responses=problems(404, 415, 422, 503) | _ANSWER, openapi_extra=_EXTRA
)
async def bulk(request: Request) -> Response:
    """A stream of images, one JSON object a line: `{"id", "image": base64}`; a line comes back for each, in order."""
    options = request_body.validate(BulkOptions, request.query_params, {})
    engine = dependencies.engine_of(request)
    engine.check(options.task)
    if request.headers.get("content-encoding", "").strip().lower() not in content_encoding.IDENTITY:
        raise UnsupportedEncoding("this stream is read line by line as it comes; send it without Content-Encoding")
    request.state.op, request.state.request_class = options.op, "bulk"
    request.state.body = engine.admission.body("bulk")
    return _Stream(request, options)


class _Stream(Response):
    """Sends each line as soon as it and all before it are there.

    Starlette's own streams read the request's body, to see the client leave; here that body is the work.
    """

    media_type = NDJSON

    def __init__(self, request: Request, options: BulkOptions) -> None:
        super().__init__(headers=dependencies.model_headers(request))
        del self.headers["content-length"]
        self._request = request
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. When the client leaves, all that is on its way is cancelled."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.TaskGroup() as group:
                waiting: Waiting = asyncio.Queue(IN_FLIGHT)
                group.create_task(self._read(group, waiting))
                while (line := await waiting.get()) is not None:
                    await send({"type": "http.response.body", "body": await line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except* ClientDisconnect:
            self._request.state.code = "client_gone"

    async def _read(self, group: asyncio.TaskGroup, waiting: Waiting) -> None:
        """Start the work of each line; waits while as many as allowed are on their way."""
        state = self._request.state
        state.images = 0
        async for line in _lines(self._request):
            if isinstance(line, bytes) and not line.strip():
                state.body.release(len(line) + 1)
                continue
            work = _one(self._request, self._options, state.images, line)
            await waiting.put(group.create_task(work))
            state.images += 1
        await waiting.put(None)


async def _lines(request: Request) -> AsyncIterator[bytes | ServiceError]:
    """The body's lines, each within VIM_MAX_BODY_BYTES; one that exceeds them before it ends is the last."""
    limit = dependencies.engine_of(request).settings.max_body_bytes
    pieces: list[bytes] = []
    size = request.state.bytes = 0
    async for part in _parts(request):
        if isinstance(part, ServiceError):
            yield part
            return
        request.state.bytes += len(part)
        first, *more = part.split(b"\n")
        pieces.append(first)
        for start in more:
            yield _line(pieces, limit)
            pieces, size = [start], 0
        size += len(pieces[-1])
        if size > limit:
            break
    yield _line(pieces, limit)


async def _parts(request: Request) -> AsyncIterator[bytes | ServiceError]:
    """The body as it arrives; a client that goes silent for VIM_BODY_TIMEOUT_MS ends it with an error."""
    stream = request.stream()
    longest_ms = dependencies.engine_of(request).settings.body_timeout_ms
    while True:
        try:
            async with asyncio.timeout(longest_ms / 1000):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            yield BodyTimeout(f"nothing came for {longest_ms} ms (VIM_BODY_TIMEOUT_MS)")
            return
        if full := await _no_room(request, len(part)):
            yield full
            return
        yield part


async def _no_room(request: Request, size: int) -> ServiceError | None:
    """None once there is memory for so much; why not, when there is none for as long as one request may take."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + dependencies.engine_of(request).settings.request_timeout_ms / 1000
    while True:
        try:
            request.state.body.receive(size)
        except ServiceError as full:
            if loop.time() > deadline:
                return full
            await asyncio.sleep(SHORT_PAUSE_S)
        else:
            return None


def _line(pieces: Sequence[bytes], limit: int) -> bytes | ServiceError:
    line = b"".join(pieces)
    return line if len(line) <= limit else BodyTooLarge(f"a line of more than {limit} bytes (VIM_MAX_BODY_BYTES)")


async def _one(request: Request, options: BulkOptions, index: int, line: bytes | ServiceError) -> bytes:
    name, item = await _parsed(request, line)
    outcome = item if isinstance(item, ServiceError) else await _infer(request, item, options.task)
    if isinstance(line, bytes):
        request.state.body.release(len(line) + 1)
    return _rendered(request, options, index, name, outcome)


async def _parsed(request: Request, line: bytes | ServiceError) -> tuple[Any, Item]:
    if isinstance(line, ServiceError):
        return None, line
    try:
        return await dependencies.in_thread(request, _parse, line)
    except ServiceError as error:
        return None, bare(error)


def _parse(line: bytes) -> tuple[Any, Item]:
    content = load_texts(line, 1)
    if not isinstance(content, dict) or "image" not in content:
        return None, MalformedBody('a line must be {"image": base64}, with an "id" if you like')
    return content.get("id"), from_text(content["image"])


async def _infer(request: Request, item: Item, task: Task) -> Outcome:
    """One image; a full queue is waited for, as long as one request may take."""
    engine = dependencies.engine_of(request)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + engine.settings.request_timeout_ms / 1000
    while True:
        try:
            return (await engine.infer([item], task, deadline, "bulk")).outcomes[0]
        except QueueFull as full:
            pause = min(LONGEST_PAUSE_S, full.retry_after_s or LONGEST_PAUSE_S)
            if loop.time() + pause > deadline:
                return bare(full)
            await asyncio.sleep(pause)
        except ServiceError as error:
            return bare(error)


def _rendered(request: Request, options: BulkOptions, index: int, name: Any, outcome: Outcome) -> bytes:
    if options.op == "classify":
        line = responses.classification(index, outcome, options.top_k, dependencies.engine_of(request).loaded.labels)
    else:
        line = responses.embedding(index, outcome, options)
    return to_json(line if name is None else {"id": name} | line) + b"\n"
