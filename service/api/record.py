"""The request record: what middleware and endpoints share about one HTTP request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from service.engine.admission import BodyAccount
from service.jobs import RequestClass, Timings
from service.status import ModelState
from service.telemetry.definitions import Op

KEY = "vim.record"  # in the ASGI scope
API = "vim.api"  # in the ASGI scope: the label `api` of a request that did not come over HTTP

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Labels(NamedTuple):
    """The labels of an endpoint that processes images, for metrics, log and traces."""

    api: str
    op: Op


@dataclass(slots=True)
class RequestRecord:
    """The record of one request. The middleware creates it; endpoints fill it in."""

    request_id: str
    trace_id: str | None
    started: float  # monotonic clock
    headers: Mapping[str, str]  # by lower-case name; the first of several with one name
    model: ModelState | None = None  # the model that answers; held until the request has ended
    heads: tuple[str, ...] = ()  # names of the custom heads that classify instead of the model's own
    labels: Labels | None = None  # None: the endpoint does not process images
    request_class: RequestClass | None = None
    body: BodyAccount | None = None
    bytes: int | None = None
    images: int | None = None
    failed_images: int | None = None
    timings: Timings | None = None
    outcome: str = "ok"  # or the code of the error


def record_of(scope: Any) -> RequestRecord:
    """The record of the request with this ASGI scope."""
    record: RequestRecord = scope[KEY]
    return record


def labelled(api: str, op: Op) -> Callable[[Endpoint], Endpoint]:
    """Decorate an endpoint that processes images. If the request selects the op, the endpoint sets it in the record."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.labels = Labels(api, op)  # type: ignore[attr-defined]
        return endpoint

    return mark
