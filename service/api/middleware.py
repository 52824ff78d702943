"""Around every request: its id, its outcome in the metrics and in one log line, where the time went in `Server-Timing`.

Never looks at a body: the log knows sizes and times, not contents. But when the request has ended, whatever way, the
memory of its body is counted as free.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.responses import timings_ms
from service.engine.admission import Body
from service.engine.open_requests import Unanswered
from service.errors import ServiceError
from service.jobs import Timings
from service.telemetry.metrics import Metrics, Op

log = logging.getLogger("vim.request")

_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_AMAZON = re.compile(r"[A-Za-z0-9=;:_-]{1,128}")  # Hugging Face's clients send a UUID, load balancers Root=1-...
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Paths that answer images -> (api, op) labels, which stay few. Where a request itself says what it wants, the contract
# puts the op into `request.state.op` once it knows.
OPERATIONS: dict[str, tuple[str, Op]] = {
    "/v1/classify": ("native", "classify"),
    "/v1/embed": ("native", "embed"),
    "/v1/bulk": ("native", "embed"),
    "/v1/embeddings": ("openai", "embed"),
    "/embeddings": ("openai", "embed"),
    "/": ("huggingface", "classify"),
    "/predict": ("huggingface", "classify"),
    "/vectorize": ("weaviate", "embed"),
    "/vectors": ("weaviate", "embed"),
    "/vectors/": ("weaviate", "embed"),
}
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
APIS = (*sorted({api for api, _ in OPERATIONS.values()}), "oip")


def operation_of(scope: Scope) -> tuple[str, Op] | None:
    """The labels of a request that answers images; None for all others."""
    if scope["path"] == "/" and scope["method"] != "POST":
        return None
    found = ("oip", "classify") if _INFER.fullmatch(scope["path"]) else OPERATIONS.get(scope["path"])
    return found and (found[0], scope["state"].get("op", found[1]))


class Traces(Protocol):
    """Where requests are traced."""

    def trace_id(self) -> str | None:
        """Of the request that is being answered."""

    def annotate(self, fields: Mapping[str, object]) -> None:
        """Put what the log says of a request into its span."""


class Observe:
    """Pure ASGI: no body is buffered and no task is added. `answer` turns an unforeseen exception into a response."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        model: str,
        answer: Callable[[Request, Exception], Response],
        unanswered: Unanswered,
        traces: Traces | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._model = model
        self._answer = answer
        self._unanswered = unanswered
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        state, headers = scope.setdefault("state", {}), Headers(scope=scope)
        state["request_id"] = request_id(headers)
        state["started"] = start
        state["trace_id"] = self._traces.trace_id() if self._traces else trace_id(headers)
        status = 0
        task = self._unanswered.enter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._unanswered.leave(task)
                self._annotate(scope, status, time.monotonic() - start)
                message["headers"] = _with_ours(message.get("headers", ()), state, scope.get("scheme", "http"))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:  # the ASGI boundary: a client always gets an answer
            if status:
                raise
            await self._answer(Request(scope), error)(scope, receive, observed)
        except asyncio.CancelledError:
            if status or self._unanswered.verdict is None:
                raise
            task.uncancel()
            await self._answer(Request(scope), self._unanswered.verdict)(scope, receive, observed)
        finally:
            self._unanswered.leave(task)
            if isinstance(body := state.get("body"), Body):
                body.let_go()
            if labels := operation_of(scope):
                self._record(scope, labels, status, time.monotonic() - start)

    def _annotate(self, scope: Scope, status: int, seconds: float) -> None:
        """Now: with the end of the answer its span ends."""
        if self._traces and (labels := operation_of(scope)):
            self._traces.annotate(log_fields(scope, labels, status, seconds))

    def _record(self, scope: Scope, labels: tuple[str, Op], status: int, seconds: float) -> None:
        api, op = labels
        model = "other" if scope["state"].get("code") == "model_not_found" else self._model
        self._metrics.request(api, op, model, status, seconds)
        if log.isEnabledFor(logging.INFO):
            path = quote(scope["path"][:200])  # a name in it may hold a line break
            log.info("%s %d", path, status, extra={"fields": log_fields(scope, labels, status, seconds)})


class Head:
    """Pure ASGI: HEAD is GET without the body (RFC 9110)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, bodiless)


class Direct:
    """Pure ASGI: endpoints that make a response of a request, without the layers of router and framework before them.

    Those take as long as all of our own code for a small image. `answer` turns an error into a response. `full` tells
    why nobody can come in now, if so: under overload most requests are refused, and what that costs others lack.
    """

    def __init__(
        self,
        app: ASGIApp,
        posts: Mapping[str, Callable[[Request], Awaitable[Response]]],
        answer: Callable[[Request, Exception], Awaitable[Response]],
        full: Callable[[], ServiceError | None] = lambda: None,
    ) -> None:
        self._app = app
        self._posts = posts
        self._answer = answer
        self._full = full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        endpoint = self._posts.get(scope["path"]) if scope.get("method") == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        if refusal := self._full():
            response = await self._answer(request, refusal)
        else:
            response = await self._asked(endpoint, request)
        await response(scope, receive, send)

    async def _asked(self, endpoint: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ServiceError, ClientDisconnect) as error:
            return await self._answer(request, error)


def log_fields(scope: Scope, labels: tuple[str, Op], status: int, seconds: float) -> dict[str, object]:
    """What the request's log line says: id, sizes, every stage's milliseconds, batch size, outcome."""
    state = scope["state"]
    timings = state.get("timings")
    stages = timings_ms(timings) if isinstance(timings, Timings) else {}
    fields = {
        "request_id": state["request_id"],
        "trace_id": state["trace_id"],
        "api": labels[0],
        "op": labels[1],
        "class": state.get("request_class"),
        "status": status,
        "outcome": state.get("code", "ok"),
        "bytes": state.get("bytes"),
        "images": state.get("images"),
        "failed_images": state.get("failed_images"),
        "ms": round(1000 * seconds, 3),
        **{name if name == "batch_size" else f"{name}_ms": value for name, value in stages.items() if name != "total"},
    }
    return {name: value for name, value in fields.items() if value is not None}


def trace_id(headers: Headers) -> str | None:
    """The trace id of a W3C `traceparent` header, else of Amazon's, for joining our log with other systems' traces."""
    if found := _TRACE.fullmatch(headers.get("traceparent", "").strip()):
        return found.group(1)
    amazon = _AMAZON.fullmatch(headers.get("x-amzn-trace-id", ""))
    return amazon.group() if amazon else None


def request_id(headers: Headers) -> str:
    """The client's own X-Request-ID when it is well formed, else a new one."""
    given = headers.get("x-request-id", "")
    # Not a secret, so the system need not be asked for random bits.
    return given if _VALID_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def server_timing(timings: Timings) -> str:
    """The `Server-Timing` header: milliseconds by stage and the batch size."""
    stages = timings_ms(timings)
    batch = stages.pop("batch_size")
    return ", ".join(f"{name};dur={value:g}" for name, value in stages.items()) + f', batch;desc="{batch:g}"'


# Nothing here is meant to be framed, guessed at or kept; a page that needs more says so itself.
_SAFE = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}
_HTTPS = (b"strict-transport-security", b"max-age=31536000")


def _with_ours(
    given: Iterable[tuple[bytes, bytes]], state: dict[str, object], scheme: str
) -> list[tuple[bytes, bytes]]:
    """An answer's headers and ours; as bytes, since every answer comes through here."""
    headers = list(given)
    names = {name for name, _ in headers}
    headers += [(name, value) for name, value in _SAFE.items() if name not in names]
    if scheme == "https":
        headers.append(_HTTPS)
    headers.append((b"x-request-id", str(state["request_id"]).encode("latin-1")))
    if isinstance(timings := state.get("timings"), Timings):
        headers.append((b"server-timing", server_timing(timings).encode("latin-1")))
    return headers
