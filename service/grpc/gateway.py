"""Calls the HTTP application in this process, without a socket.

So a call over gRPC has the same limits, queue, deadlines, keys, metrics, log line and errors as one over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from grpc import StatusCode
from grpc.aio import ServicerContext

from service.api.oip.forms import FORM, InProcess
from service.api.record import API
from service.devices.batcher import GATHERED, GATHERING_S
from service.errors import ServiceError, headers

# What a client may send as metadata; all else is not for the service.
PASSED_ON = ("authorization", "x-api-key", "x-request-id", "x-request-class", "traceparent", "x-amzn-trace-id")
_STATUS = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
_OVERLOAD = ("queue_full", "memory_full")  # 503 with VIM_OVERLOAD_STATUS=503

Headers = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The response of the application."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class CallError(Exception):
    """The error of a call: a status, a text, and trailing metadata."""

    def __init__(self, code: StatusCode, detail: str, trailing: Sequence[tuple[str, str]]) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.trailing = tuple(trailing)

    @classmethod
    def of(cls, error: ServiceError) -> CallError:
        """An error that did not come from the application."""
        more = [(name.lower(), value) for name, value in headers(error).items()]
        return cls(_code(error.status, error.code), error.detail, [("error-code", error.code), *more])

    async def abort(self, context: ServicerContext) -> NoReturn:
        """End the call with this error."""
        await context.abort(self.code, self.detail, self.trailing)
        raise AssertionError  # abort has raised


class Running:
    """Counts the running calls, which the server finishes before it ends: `with running:`."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def idle(self, timeout_s: float) -> None:
        """Wait until there is none, at most for a time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)


class Gateway:
    """The application, and where it is served. `infer_app` answers the requests to infer."""

    def __init__(self, app: App, infer_app: App, scheme: str) -> None:
        self._app = app
        self._infer_app = infer_app
        self._scheme = scheme
        self.running = Running()
        self._together = Together()

    async def get(self, context: ServicerContext, path: str) -> Any:
        """The JSON of a GET. Raises CallError."""
        return (await self.call(context, "GET", path)).json()

    async def call(self, context: ServicerContext, method: str, path: str, body: bytes = b"") -> Reply:
        """Send a request, with the metadata and the deadline of a call. Raises CallError."""
        with self.running:
            return await self._answer(self._app, self._scope(context, method, path, len(body)), body)

    async def infer(self, context: ServicerContext, model: str, version: str, form: InProcess) -> None:
        """Send a request to infer; the form keeps its answer. `version` may be empty. Raises CallError."""
        path = f"{model_path(model, version)}/infer"
        parameters = {"model": model, "version": version} if version else {"model": model}
        scope = self._scope(context, "POST", path, len(form.body))
        scope |= {FORM: form, "path_params": parameters}
        with self.running:
            async with self._together:
                await self._answer(self._infer_app, scope, form.body)

    def _scope(self, context: ServicerContext, method: str, path: str, size: int) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": self._scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*_headers(context), (b"content-length", str(size).encode())],
            "client": None,
            "server": None,
            API: "grpc",
        }

    async def _answer(self, app: App, scope: Message, body: bytes) -> Reply:
        sent = False
        status, received, parts = 500, dict[bytes, bytes](), list[bytes]()

        async def receive() -> Message:
            nonlocal sent
            if sent:  # a cancelled call cancels this task instead of a disconnect
                await asyncio.get_running_loop().create_future()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                received.update(message["headers"])
            else:
                parts.append(message.get("body", b""))

        await app(scope, receive, send)
        reply = Reply(status, received, parts[0] if len(parts) == 1 else b"".join(parts))
        if status >= 400:
            raise _failure(reply)
        return reply


class Together:
    """Lets calls that arrive within a short time begin together: `async with together:`.

    grpc.aio accepts one call in each iteration of the event loop. Calls that begin one by one would send their images
    to the device one by one. Sending costs as much as all other work for a small image. So beside many calls, a call
    waits until `GATHERED` can begin, for `GATHERING_S` at most.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._inside += 1
        if self._inside <= GATHERED:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) >= GATHERED:
            self._release()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHERING_S, self._release)
        try:
            await turn
        except asyncio.CancelledError:
            self._inside -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._inside -= 1

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():  # the call was cancelled
                turn.set_result(None)


def model_path(name: str, version: str) -> str:
    """The path of a model over HTTP; `version` may be empty."""
    path = f"/v2/models/{name}"
    return f"{path}/versions/{version}" if version else path


def _headers(context: ServicerContext) -> Headers:
    found = [(name.encode(), as_bytes(value)) for name, value in context.invocation_metadata() or ()]
    passed = [(name, value) for name, value in found if name.decode() in PASSED_ON]
    remaining = context.time_remaining()
    if remaining is not None:
        passed.append((b"x-request-timeout-ms", str(max(1, math.ceil(1000 * remaining))).encode()))
    return passed


def as_bytes(value: str | bytes) -> bytes:
    """The value of metadata as that of a header."""
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _failure(reply: Reply) -> CallError:
    try:
        problem = reply.json()
    except ValueError:
        problem = {}
    code = str(problem.get("code", ""))
    trailing = [("error-code", code)] if code else []
    told = (name for name in (b"retry-after", b"x-request-id") if name in reply.headers)
    trailing += [(name.decode(), reply.headers[name].decode("latin-1")) for name in told]
    return CallError(_code(reply.status, code), str(problem.get("detail", "an unknown error")), trailing)


def _code(status: int, code: str) -> StatusCode:
    return StatusCode.RESOURCE_EXHAUSTED if code in _OVERLOAD else _STATUS.get(status, StatusCode.INTERNAL)
