"""The forms of an infer request and of its answer. Over HTTP that is JSON, with or without raw tensors after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from service.api.oip import tensors
from service.api.oip.tensors import RequestHeader, Tensor
from service.api.request.body import LARGE
from service.api.responses import OCTETS, JsonResponse
from service.errors import MalformedBody

FORM = "vim.oip.form"  # in the ASGI scope: the form of a request within the process
HEADER = "Inference-Header-Content-Length"
SMALL_JSON = 4096  # bytes that are parsed in less time than a thread costs


class Form(Protocol):
    """The form of one request and its answer."""

    def is_quick(self, body: bytes) -> bool:
        """Return whether `read` takes less time than a thread costs."""

    def read(self, body: bytes) -> tuple[RequestHeader, list[Tensor]]:
        """The request that a body holds. Raises what `tensors.parse` raises."""

    def write(self, content: dict[str, Any], raw: bytes) -> Response:
        """The answer: its JSON as a dictionary, and the raw tensors that follow."""


class JsonForm:
    """JSON. If `json_size`, its number of bytes, is given, raw tensors follow it. 0: the body is one image."""

    def __init__(self, json_size: int | None) -> None:
        self._json_size = json_size

    def is_quick(self, body: bytes) -> bool:
        """Return whether the JSON is short, and images need not be decoded from base64."""
        return self._json_size is not None and self._json_size <= SMALL_JSON and len(body) < LARGE

    def read(self, body: bytes) -> tuple[RequestHeader, list[Tensor]]:
        """Parse the body."""
        return tensors.parse(body, self._json_size, "image")

    def write(self, content: dict[str, Any], raw: bytes) -> Response:
        """The answer is JSON if no output was requested as raw bytes."""
        response = JsonResponse(content)
        if not any("parameters" in one for one in content["outputs"]):
            return response
        return Response(bytes(response.body) + raw, media_type=OCTETS, headers={HEADER: str(len(response.body))})


class InProcess(ABC):
    """The form of a request that begins within the process. It keeps the answer; the HTTP response is empty.

    `body` are the raw tensors of the request, one after the other.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.kept: tuple[dict[str, Any], bytes] | None = None

    def is_quick(self, body: bytes) -> bool:
        """Return whether the images are so small that copying them takes no time."""
        return len(body) < LARGE

    @abstractmethod
    def read(self, body: bytes) -> tuple[RequestHeader, list[Tensor]]:
        """The request with these raw tensors."""

    def write(self, content: dict[str, Any], raw: bytes) -> Response:
        """Keep the answer."""
        self.kept = content, raw
        return Response()


def form_of(request: Request) -> Form:
    """The form of a request. Raises MalformedBody for an invalid length of the JSON."""
    given: Form | None = request.scope.get(FORM)
    return JsonForm(_json_size(request)) if given is None else given


def _json_size(request: Request) -> int | None:
    given = request.headers.get(HEADER)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 12:
        raise MalformedBody(f"{HEADER} must be a whole number of bytes; got {given[:40]!r}")
    return int(given)
