"""Around every request: its id, its duration and outcome in the metrics, and where the time went in `Server-Timing`."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs import Timings
from service.metrics import Metrics, Op
from service.outputs import timings_ms

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Route template -> (api, op) labels; everything else is "other", so that labels stay bounded.
OPERATIONS: dict[str, tuple[str, Op]] = {"/v1/classify": ("native", "classify"), "/v1/embed": ("native", "embed")}


class Observe:
    """Pure ASGI: no body is buffered and no task is added. `answer` turns an unforeseen exception into a response."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, model: str, answer: Callable[[Request, Exception], Response]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._model = model
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(Headers(scope=scope))
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), state)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:  # the ASGI boundary: a client always gets an answer
            if status:
                raise
            await self._answer(Request(scope), error)(scope, receive, observed)
        finally:
            self._record(scope["path"], status, time.perf_counter() - start)

    def _record(self, path: str, status: int, seconds: float) -> None:
        if path in OPERATIONS:
            api, op = OPERATIONS[path]
            self._metrics.request(api, op, self._model, status, seconds)


def request_id(headers: Headers) -> str:
    """The client's own X-Request-ID when it is well formed, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _VALID_ID.fullmatch(given) else uuid.uuid4().hex


def server_timing(timings: Timings) -> str:
    """The `Server-Timing` header: milliseconds by stage and the batch size."""
    stages = timings_ms(timings)
    batch = stages.pop("batch_size")
    return ", ".join(f"{name};dur={value:g}" for name, value in stages.items()) + f', batch;desc="{batch:g}"'


def _add_headers(headers: MutableHeaders, state: dict[str, object]) -> None:
    headers["X-Request-ID"] = str(state["request_id"])
    if isinstance(timings := state.get("timings"), Timings):
        headers["Server-Timing"] = server_timing(timings)
