"""Turns errors into HTTP responses, for all contracts."""

from __future__ import annotations

import logging

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from service.api.compat import openai
from service.api.record import record_of
from service.api.responses import JsonResponse
from service.errors import (
    InternalError,
    InvalidOptions,
    MethodNotAllowed,
    NotFound,
    OutOfMemory,
    ServiceError,
    UnsupportedImage,
    bare,
    headers,
    problem,
)

log = logging.getLogger("vim.app")

HANDLED = (ServiceError, RequestValidationError, HTTPException, ClientDisconnect)


async def handle(request: Request, error: Exception) -> Response:
    """Handle an exception of the application. A coroutine, because a plain function would run in a thread."""
    return client_gone(request) if isinstance(error, ClientDisconnect) else respond(request, error)


def client_gone(request: Request) -> Response:
    """The response after a disconnect. No client reads it; the status 499, as in nginx, is for log and metrics."""
    request.app.state.engine.metrics.rejected("client_gone")
    record_of(request.scope).outcome = "client_gone"
    return Response(status_code=499)


def respond(request: Request, error: Exception) -> Response:
    """The response for an error, in the format of the contract that the path belongs to."""
    known, record, path = _translate(request, error), record_of(request.scope), request.scope["path"]
    bare(error)
    if record.labels:  # a probe that answers "not ready" is not a rejected request
        request.app.state.engine.metrics.refused(known)
    record.outcome = known.code
    render = openai.problem if openai.speaks(path) else problem
    body = render(known, instance=path, request_id=record.request_id)
    extra = {"Allow": _methods(request)} if isinstance(known, MethodNotAllowed) else {}
    return JsonResponse(body, known.status, headers(known) | extra)


def _methods(request: Request) -> str:
    """The value of `Allow`: all methods of the path, of all its routes."""

    def allows(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)

    found = [method for method in ("GET", "POST", "PUT", "DELETE") if allows(method)]
    return ", ".join(found).replace("GET", "GET, HEAD")


def _translate(request: Request, error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return _with_hint(error) if isinstance(error, UnsupportedImage) and _is_url_encoded(request) else error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _from_http(error)
    full = isinstance(error, MemoryError)
    fields = {"request_id": record_of(request.scope).request_id}
    log.error("out of memory" if full else "unforeseen", exc_info=error, extra={"fields": fields})
    if full:
        return OutOfMemory("the server has no memory for this request now", retry_after_s=1)
    return InternalError("an internal error; the log has the details under this request id")


def _is_url_encoded(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")


def _with_hint(error: UnsupportedImage) -> UnsupportedImage:
    """Add the most frequent cause: `curl -d @file` removes line breaks and zero bytes."""
    copy = error.with_items(error.results)
    copy.detail += "; if curl -d has sent this, use --data-binary, because -d changes the file"
    return copy


def _invalid(error: RequestValidationError) -> InvalidOptions:
    found = [{"loc": ".".join(map(str, e["loc"][1:])), "msg": _message(e)} for e in error.errors()]
    return InvalidOptions("; ".join(f"{e['loc']}: {e['msg']}" for e in found), errors=found)


def _message(error: dict[str, object]) -> str:
    return "unknown option" if error["type"] == "extra_forbidden" else str(error["msg"])


def _from_http(error: HTTPException) -> ServiceError:
    if error.status_code == 404:
        return NotFound("no such path; /docs lists the paths")
    if error.status_code == 405:
        return MethodNotAllowed("this path does not accept this method; /docs lists the paths and methods")
    return InternalError(str(error.detail))
