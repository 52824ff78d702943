"""/v1/bulk: many images in one request. NDJSON in, NDJSON out, in order, a result or an error for each image.

The stream is processed as it arrives: at most `IN_FLIGHT` images are in flight. When the queue or the memory for bodies
is full, the stream waits and is not refused. The request class is bulk. A client must read the answers while it sends,
or send short requests.

Each line has the time limit of a request, from its last byte to its result, parsing and waiting included. So a stream
of N lines lasts at most N / `IN_FLIGHT` of these, rounded up, and the time that the client takes to send them.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import dependencies, responses
from service.api.record import Labels, RequestRecord, labelled, record_of
from service.api.request import content_encoding
from service.api.request.body import validate
from service.api.request.image_fields import from_text
from service.api.request.json_body import FILE_PATHS, load_texts, looks_like_json
from service.api.responses import to_json
from service.api.routing import DirectRoute
from service.api.schemas import LINE_TIMEOUT, BulkOptions, Responses, problems, query
from service.engine.admission import BodyAccount
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    MalformedBody,
    Overload,
    ServiceError,
    UnsupportedEncoding,
    bare,
)
from service.heads.store import NamedHead
from service.jobs import Given, Outcome, Task
from service.status import ModelState

router = APIRouter(tags=["native"], route_class=DirectRoute)

NDJSON = "application/x-ndjson"
_BLANK_LINES = re.compile(rb"\n\s+")
_TAKES = 'a line must be {"image": base64}, optionally with an "id"'
IN_FLIGHT = 16  # images of one stream that are computed at the same time
LONGEST_PAUSE_S, SHORT_PAUSE_S = 1.0, 0.1

T = TypeVar("T")
Waiting = asyncio.Queue[asyncio.Task[bytes] | None]  # answers in order, finished or not; None marks the end


_TEXT = {"type": "string"}
_LINES = {NDJSON: {"schema": _TEXT | {"description": 'Lines of {"id": any, "image": base64}.'}}}
_ANSWER: Responses = {200: {"content": {NDJSON: {"schema": _TEXT}}, "description": "A line for each image."}}
_EXTRA = {
    "parameters": [*query(BulkOptions), LINE_TIMEOUT],
    "requestBody": {"required": False, "content": _LINES},
}


@router.post(
    "/v1/bulk",
    summary="Classify or embed a stream of images",
    response_class=Response,
    responses=problems(404, 415, 422, 503) | _ANSWER,
    openapi_extra=_EXTRA,
)
@labelled("native", "embed")
async def bulk(request: Request) -> Response:
    """A stream of images, one JSON object per line: `{"id", "image": base64}`. Each gets one line back, in order."""
    options = validate(BulkOptions, request.query_params, {})
    engine = dependencies.engine_of(request)
    task, heads = Task("embed", options.pooling, crop=options.crop), list[NamedHead]()
    if options.op == "classify":
        task = Task("classify", crop=options.crop)
        dependencies.choose_heads(request, options.head)
    state = dependencies.choose(request, task, options.model)
    if options.op == "classify":
        task, heads = await dependencies.classify_task(request, task, options)
    if request.headers.get("content-encoding", "").strip().lower() not in content_encoding.IDENTITY:
        raise UnsupportedEncoding("this stream is read line by line as it arrives; send it without Content-Encoding")
    record = record_of(request.scope)
    record.labels, record.request_class = Labels("native", options.op), "bulk"
    record.body = BodyAccount(engine.admission, "bulk", state.id.number)
    return _Stream(request, options, task, state, heads, record, record.body, dependencies.allowed_s(request))


class _Stream(Response):
    """Sends each line as soon as it and all earlier lines are complete.

    Starlette's own streaming response reads the request's body to notice a disconnect. Here the body holds the images.
    """

    media_type = NDJSON

    def __init__(
        self,
        request: Request,
        options: BulkOptions,
        task: Task,
        state: ModelState,
        heads: Sequence[NamedHead],
        record: RequestRecord,
        account: BodyAccount,
        allowed_s: float,
    ) -> None:
        assert state.model is not None  # it has been ready
        super().__init__(headers=dependencies.model_headers(state.model))
        del self.headers["content-length"]
        self._engine = dependencies.engine_of(request)
        self._state = state
        self._model = state.model
        self._heads = heads
        self._task = task
        self._links = dependencies.links_of(request)
        self._request = request
        self._options = options
        self._record = record
        self._account = account
        self._allowed_s = allowed_s  # for each line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. When the client disconnects, everything in flight is cancelled.

        The whole stream uses the model and the heads that it began with, also when they are replaced.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.TaskGroup() as group:
                waiting: Waiting = asyncio.Queue(IN_FLIGHT)
                group.create_task(self._read(group, waiting))
                while (line := await waiting.get()) is not None:
                    await send({"type": "http.response.body", "body": await line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except* ClientDisconnect:
            self._record.outcome = "client_gone"
            self._engine.metrics.rejected("client_gone")

    async def _read(self, group: asyncio.TaskGroup, waiting: Waiting) -> None:
        """Start the work of each line; wait while `IN_FLIGHT` images are in flight."""
        images = self._record.images = self._record.failed_images = 0
        async for line in self._lines():
            await waiting.put(group.create_task(self._one(images, line)))
            images = self._record.images = images + 1
        await waiting.put(None)

    async def _lines(self) -> AsyncIterator[bytes | ServiceError]:
        """Yield the lines of the body that are not blank.

        A line over VIM_MAX_BODY_BYTES is an error, and the last if it has no end.
        """
        limit = self._engine.settings.max_body_bytes
        pieces: list[bytes] = []
        size = total = 0
        async for part in self._parts():
            if isinstance(part, ServiceError):
                yield part
                return
            total = self._record.bytes = total + len(part)
            compact = _BLANK_LINES.sub(b"\n", part)  # in one step: 64 kB may hold 65,536 blank lines
            self._account.release(len(part) - len(compact))
            first, *lines = compact.split(b"\n")
            pieces.append(first)
            size += len(first)
            if lines:
                *whole, last = b"".join(pieces), *lines
                pieces, size = [last], len(last)
                for line in self._without_blanks(whole):
                    yield _checked(line, limit)
            if size > limit:
                break
        for line in self._without_blanks([b"".join(pieces)]):
            yield _checked(line, limit)

    def _without_blanks(self, lines: Sequence[bytes]) -> list[bytes]:
        found = [line for line in lines if line and not line.isspace()]
        dropped = sum(map(len, lines)) - sum(map(len, found)) + len(lines) - len(found)  # each with its line break
        self._account.release(dropped)
        return found

    async def _parts(self) -> AsyncIterator[bytes | ServiceError]:
        """Yield the body as it arrives. If nothing arrives for VIM_BODY_TIMEOUT_MS, the last item is an error."""
        stream = self._request.stream()
        longest_ms = self._engine.settings.body_timeout_ms
        while True:
            try:
                async with asyncio.timeout(longest_ms / 1000):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                yield BodyTimeout(f"no data arrived for {longest_ms} ms (VIM_BODY_TIMEOUT_MS)")
                return
            if refusal := await self._wait_for_memory(len(part)):
                yield refusal
                return
            yield part

    async def _wait_for_memory(self, size: int) -> ServiceError | None:
        """Wait until `size` bytes fit into memory. Return the refusal if VIM_REQUEST_TIMEOUT_MS passes before that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._engine.settings.request_timeout_ms / 1000
        while True:
            try:
                self._account.receive(size)
            except ServiceError as full:
                if loop.time() > deadline:
                    return full
                await asyncio.sleep(SHORT_PAUSE_S)
            else:
                return None

    async def _one(self, index: int, line: bytes | ServiceError) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._allowed_s
        name, given = await self._parsed(line, deadline)
        outcome = given if isinstance(given, ServiceError) else await self._infer(given, deadline)
        if isinstance(line, bytes):
            self._account.release(len(line) + 1)
        if isinstance(outcome, ServiceError):
            self._record.failed_images = (self._record.failed_images or 0) + 1
            self._engine.metrics.refused(outcome)
        return self._rendered(index, name, outcome)

    async def _parsed(self, line: bytes | ServiceError, deadline: float) -> tuple[Any, Given]:
        if isinstance(line, ServiceError):
            return None, line
        try:
            async with asyncio.timeout_at(deadline):
                return await self._engine.decode_pool.run("bulk", _parse, line)
        except ServiceError as error:
            return None, bare(error)
        except TimeoutError:
            return None, DeadlineExceeded(f"no thread could parse the line within {1000 * self._allowed_s:.0f} ms")

    async def _infer(self, given: Given, deadline: float) -> Outcome:
        """Fetch the image if it is a link, and run it."""
        engine, task = self._engine, self._task
        account = BodyAccount(engine.admission, "bulk", self._account.model)  # the bytes of the fetched image
        arguments = [given], task, self._state, deadline, account, self._record.request_id
        try:
            (item,) = await _patiently(lambda: self._links.images(*arguments), deadline)
            if isinstance(item, ServiceError):
                return item
            infer = functools.partial(engine.infer, [item], task, deadline, "bulk", self._state)
            return (await _patiently(infer, deadline)).outcomes[0]
        except ServiceError as error:
            return bare(error)
        finally:
            account.close()

    def _rendered(self, index: int, name: Any, outcome: Outcome) -> bytes:
        if self._options.op == "classify":
            (line,) = responses.classified([outcome], self._model, self._heads, self._options)
            line["index"] = index
        else:
            line = responses.embedding(index, outcome, self._options)
        return to_json(line if name is None else {"id": name} | line) + b"\n"


async def _patiently(work: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Do the work; wait while the queue or the memory is full, at most until the deadline."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await work()
        except Overload as full:
            pause = min(LONGEST_PAUSE_S, full.retry_after_s or LONGEST_PAUSE_S)
            if loop.time() + pause > deadline:
                raise
        await asyncio.sleep(pause)


def _checked(line: bytes, limit: int) -> bytes | ServiceError:
    return line if len(line) <= limit else BodyTooLarge(f"the line has more than {limit} bytes (VIM_MAX_BODY_BYTES)")


def _parse(line: bytes) -> tuple[Any, Given]:
    if not looks_like_json(line):
        return None, MalformedBody(f"the line is not JSON; {_TAKES}; {FILE_PATHS}")
    content = load_texts(line, 1)
    if not isinstance(content, dict):
        return None, MalformedBody(_TAKES)
    if "image" not in content:
        return content.get("id"), MalformedBody(_TAKES)
    return content.get("id"), from_text(content["image"])
