"""ASGI middleware around every request: id and request record, metrics, log line, `Server-Timing`, security headers.

It never reads a body: the log has sizes and times, no contents. When a request ends, for any reason, the memory of its
body is counted as free.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from fastapi.routing import APIRoute, APIRouter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.api.record import API, KEY, Labels, RequestRecord
from service.engine.backend import Backend
from service.engine.open_requests import OpenRequests
from service.errors import UnknownModel
from service.jobs import Timings
from service.telemetry.metrics import OTHER, Metrics
from service.telemetry.tracer import Tracer

log = logging.getLogger("vim.request")

_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_AMAZON = re.compile(r"[A-Za-z0-9=;:_-]{1,128}")  # Hugging Face's clients send a UUID, load balancers Root=1-...
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RouteLabels:
    """The labels of the endpoints that answer images, by path."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self.exact: dict[str, Labels] = {}
        self.patterns: list[tuple[re.Pattern[str], Labels]] = []
        for route in (route for router in routers for route in router.routes):
            if isinstance(route, APIRoute) and (labels := getattr(route.endpoint, "labels", None)):
                if route.param_convertors:
                    self.patterns.append((route.path_regex, labels))
                else:
                    self.exact[route.path] = labels

    @property
    def apis(self) -> list[str]:
        """The values of the label `api`."""
        return sorted({labels.api for labels in (*self.exact.values(), *(one for _, one in self.patterns))})


class Observe:
    """ASGI middleware that observes requests without buffering bodies or adding tasks. Every request gets an answer."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        labels: RouteLabels,
        open_requests: OpenRequests,
        tracer: Tracer,
        backend: Backend,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._labels = labels
        self._open = open_requests
        self._tracer = tracer
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        trace = self._tracer.trace_id() if self._tracer.enabled else trace_id(headers)
        record = scope[KEY] = RequestRecord(request_id(headers), trace, start, headers, labels=self._labels_of(scope))
        status = 0
        task = asyncio.current_task()
        assert task is not None
        self._open.tasks.add(task)

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._open.tasks.discard(task)
                if self._tracer.enabled and record.labels:  # the span ends with the answer
                    self._tracer.annotate(log_fields(record, record.labels, status, time.monotonic() - start))
                message["headers"] = _add_headers(message.get("headers", ()), record, scope.get("scheme", "http"))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:  # the ASGI boundary: a client always gets an answer
            response = errors.respond(Request(scope), error)
            if status:
                raise
            await response(scope, receive, observed)
        except asyncio.CancelledError:
            if status or self._open.verdict is None:
                raise
            task.uncancel()
            await errors.respond(Request(scope), self._open.verdict)(scope, receive, observed)
        finally:
            self._open.tasks.discard(task)
            if record.body is not None:
                record.body.close()
            if record.model is not None:
                self._backend.release(record.model.id.key)
            if record.labels:
                self._count(scope["path"], record, record.labels, status, time.monotonic() - start)

    def _labels_of(self, scope: Scope) -> Labels | None:
        """None for endpoints that answer no images."""
        path, labels = scope["path"], self._labels
        if path == "/" and scope["method"] != "POST":  # the demo page
            return None
        found = labels.exact.get(path) or next((one for pattern, one in labels.patterns if pattern.match(path)), None)
        return found._replace(api=scope[API]) if found and API in scope else found

    def _count(self, path: str, record: RequestRecord, labels: Labels, status: int, seconds: float) -> None:
        model = OTHER if record.outcome == UnknownModel.code else _name(record)
        self._metrics.request(labels.api, labels.op, model, status, seconds)
        if log.isEnabledFor(logging.INFO):
            fields = log_fields(record, labels, status, seconds)
            log.info("%s %d", quote(path[:200]), status, extra={"fields": fields})  # a path may contain a line break


class Head:
    """ASGI middleware that answers HEAD as GET without the body (RFC 9110)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


def log_fields(record: RequestRecord, labels: Labels, status: int, seconds: float) -> dict[str, object]:
    """The fields of a request's log line: id, sizes, milliseconds of every stage, batch size, outcome."""
    times = record.timings
    stages = {} if times is None else {f"{name}_ms": value for name, value in _stages_ms(times) if name != "total"}
    fields = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "api": labels.api,
        "op": labels.op,
        "model": _name(record),
        "class": record.request_class,
        "status": status,
        "outcome": record.outcome,
        "bytes": record.bytes,
        "images": record.images,
        "failed_images": record.failed_images,
        "ms": round(1000 * seconds, 3),
        **stages,
        "batch_size": times.batch_size if times else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _name(record: RequestRecord) -> str | None:
    return record.model.id.name if record.model else None


def trace_id(headers: Mapping[str, str]) -> str | None:
    """The trace id of a W3C `traceparent` header, else of Amazon's; it connects our log with other traces."""
    if found := _TRACE.fullmatch(headers.get("traceparent", "").strip()):
        return found.group(1)
    amazon = _AMAZON.fullmatch(headers.get("x-amzn-trace-id", ""))
    return amazon.group() if amazon else None


def request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-ID if it is well formed, else a new id."""
    given = headers.get("x-request-id", "")
    # The id is not secret, so cheap random bits are enough.
    return given if _VALID_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def server_timing(timings: Timings) -> str:
    """The `Server-Timing` header: milliseconds by stage and the batch size."""
    stages = ", ".join([f"{name};dur={value:g}" for name, value in _stages_ms(timings)])
    return f'{stages}, batch;desc="{timings.batch_size}"'


def _stages_ms(timings: Timings) -> list[tuple[str, float]]:
    """Milliseconds by stage, to the microsecond."""
    return [
        ("decode", round(1000 * timings.decode_s, 3)),
        ("preprocess", round(1000 * timings.preprocess_s, 3)),
        ("queue", round(1000 * timings.queue_s, 3)),
        ("infer", round(1000 * timings.infer_s, 3)),
        ("total", round(1000 * timings.total_s, 3)),
    ]


# No answer may be framed, sniffed or cached. A page that needs other values sets these headers itself.
_SAFE = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}
_HTTPS = (b"strict-transport-security", b"max-age=31536000")


def _add_headers(given: Iterable[tuple[bytes, bytes]], record: RequestRecord, scheme: str) -> list[tuple[bytes, bytes]]:
    """Add the security, id and timing headers to those of an answer; as bytes, because every answer needs them."""
    headers = list(given)
    names = {name for name, _ in headers}
    headers += [(name, value) for name, value in _SAFE.items() if name not in names]
    if scheme == "https":
        headers.append(_HTTPS)
    headers.append((b"x-request-id", record.request_id.encode("latin-1")))
    if record.timings is not None:
        headers.append((b"server-timing", server_timing(record.timings).encode("latin-1")))
    return headers
