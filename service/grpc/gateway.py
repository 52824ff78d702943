"""Calls the HTTP application in this process, without a socket.

So a call over gRPC has the same limits, queue, deadlines, keys, metrics, log line and errors as one over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from grpc import StatusCode
from grpc.aio import ServicerContext

from service.api.record import API

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
Message = dict[str, Any]
App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


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
    """The application answered with an error."""

    def __init__(self, code: StatusCode, detail: str, trailing: Sequence[tuple[str, str]]) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.trailing = tuple(trailing)

    async def abort(self, context: ServicerContext) -> NoReturn:
        """End the call with this error."""
        await context.abort(self.code, self.detail, self.trailing)
        raise AssertionError  # abort has raised


class Gateway:
    """The application, and where it is served."""

    def __init__(self, app: App, scheme: str) -> None:
        self._app = app
        self._scheme = scheme
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, timeout_s: float) -> None:
        """Wait until no request is running, at most for a time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def get(self, context: ServicerContext, path: str) -> Any:
        """The JSON of a GET. Raises CallError."""
        return (await self.call(context, "GET", path)).json()

    async def call(
        self,
        context: ServicerContext,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Reply:
        """Send a request, with the metadata and the deadline of a call. Raises CallError."""
        given = [*headers, *_headers(context), (b"content-length", str(len(body)).encode())]
        reply = await self._request(method, path, body, given)
        if reply.status >= 400:
            raise _failure(reply)
        return reply

    async def _request(self, method: str, path: str, body: bytes, headers: Headers) -> Reply:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": self._scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
            API: "grpc",
        }
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

        self._running += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
        return Reply(status, received, parts[0] if len(parts) == 1 else b"".join(parts))


def _headers(context: ServicerContext) -> Headers:
    found = [(name.encode(), _as_bytes(value)) for name, value in context.invocation_metadata() or ()]
    headers = [(name, value) for name, value in found if name.decode() in PASSED_ON]
    remaining = context.time_remaining()
    if remaining is not None:
        headers.append((b"x-request-timeout-ms", str(max(1, math.ceil(1000 * remaining))).encode()))
    return headers


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _failure(reply: Reply) -> CallError:
    try:
        problem = reply.json()
    except ValueError:
        problem = {}
    code = str(problem.get("code", ""))
    status = StatusCode.RESOURCE_EXHAUSTED if code in _OVERLOAD else _STATUS.get(reply.status, StatusCode.INTERNAL)
    trailing = [("error-code", code)] if code else []
    told = (name for name in (b"retry-after", b"x-request-id") if name in reply.headers)
    trailing += [(name.decode(), reply.headers[name].decode("latin-1")) for name in told]
    return CallError(status, str(problem.get("detail", "an unknown error")), trailing)
