"""Traces by OpenTelemetry, where VIM_TRACING is on; the only user of opentelemetry, and not imported otherwise.

FastAPI itself makes the span of a request. Here are those below it: `image` for each image, in it `decode`, `queue` and
`device`. Of identical images that are computed once the work is in the trace of whoever sent it first; the spans of the
others say `vim.joined`. Where spans go, and how many, is said by the standard OTEL_ variables.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, StatusCode, Tracer, format_trace_id, get_current_span

from service import __version__
from service.api.request.image_fields import Image, Item
from service.engine.coalescing import Flight
from service.engine.engine import Engine, Landed, Outcome
from service.errors import ServiceError, SettingsError
from service.images import decode
from service.jobs import Job, RequestClass, Result, Task
from service.server.prefork.remote_pool import Outpost
from service.settings import Settings
from service.telemetry.metrics import Metrics

FLUSH_S = 5  # how long the end of the service may wait for a collector that does not answer
UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"})


class Traces:
    """The spans of one application, and where they go."""

    def __init__(self) -> None:
        """Raises SettingsError for an exporter or protocol that is not there."""
        self.provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter := _exporter():
            self.provider.add_span_processor(BatchSpanProcessor(exporter))

    def fastapi(self) -> dict[str, Any]:
        """FastAPI's own telemetry: a span for each request, nothing of contents, nothing for probes."""
        spans = {"tracing": True, "tracer_provider": self.provider, "operation_spans": False, "exclude": _untraced}
        return {**spans, "metrics": False, "logs": False, "auto_configure": False}

    def engine(self, settings: Settings, metrics: Metrics, worker: str, outpost: Outpost | None = None) -> Engine:
        """An engine that records what it does."""
        return _TracedEngine(settings, metrics, worker, outpost, self.provider.get_tracer("vim", __version__))

    def trace_id(self) -> str | None:
        """Of the request that is being answered."""
        context = get_current_span().get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def annotate(self, fields: Mapping[str, object]) -> None:
        """Put what the log says of a request into its span."""
        span = get_current_span()
        for name, value in fields.items():
            if isinstance(value, (str, int, float)):
                span.set_attribute(f"vim.{name}", value)

    def close(self) -> None:
        """Send what is left, if somebody takes it soon. Blocks."""
        last = threading.Thread(target=self.provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_S)


def _untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in UNTRACED


def _resource() -> Resource:
    """Who we are, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise."""
    ours = Resource.create({"service.name": "vim-server", "service.version": __version__})
    return ours.merge(OTELResourceDetector().detect())


def _exporter() -> SpanExporter | None:
    kind = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    wire = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = next((text for name in wire if (text := os.environ.get(name))), "http/protobuf")
    if kind == "otlp" and protocol == "http/protobuf":
        return OTLPSpanExporter()
    if kind == "console":
        return ConsoleSpanExporter()
    if kind == "none":
        return None
    if kind == "otlp":
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not spoken here: http/protobuf (port 4318) is")
    raise SettingsError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {kind!r}")


class _TracedEngine(Engine):
    def __init__(
        self, settings: Settings, metrics: Metrics, worker: str, outpost: Outpost | None, tracer: Tracer
    ) -> None:
        super().__init__(settings, metrics, worker, outpost)
        self._tracer = tracer

    async def _one(self, item: Item, slot: int, task: Task, request_class: RequestClass) -> Landed:
        with self._span("image") as span:
            outcome, timings = await super()._one(item, slot, task, request_class)
            if isinstance(outcome, ServiceError):
                _fail(span, outcome.code)
            return outcome, timings

    def _join(self, outcome: Outcome, waited_s: float) -> Landed:
        get_current_span().set_attribute("vim.joined", True)
        return super()._join(outcome, waited_s)

    async def _decode(self, image: Image, slot: int, request_class: RequestClass) -> decode.DecodeTimes:
        with self._span("decode") as span:
            times = await super()._decode(image, slot, request_class)
            span.set_attribute("vim.decode_ms", 1000 * times.decode_s)
            span.set_attribute("vim.preprocess_ms", 1000 * times.preprocess_s)
            return times

    async def _queue(self, slot: int, task: Task, flight: Flight[Landed]) -> Result:
        failure = None
        try:
            result = await super()._queue(slot, task, flight)
        except (ServiceError, asyncio.CancelledError) as error:
            failure = _code(error)
            raise
        finally:
            device = self._waited(flight.job, failure) if flight.job else None
            if device and not failure:
                device.set_attribute("vim.batch_size", result.batch_size)
            if device:
                device.end()
        return result

    def _waited(self, job: Job, failure: str | None) -> Span | None:
        """Record the wait; returns the span of the device's work, still open, if it came to that."""
        to_wall = time.time_ns() - time.monotonic_ns()
        queue = self._tracer.start_span("queue", start_time=to_wall + int(1e9 * job.enqueued_at))
        if job.began_at is None:
            _fail(queue, failure or "unknown")
            queue.end()
            return None
        began = to_wall + int(1e9 * job.began_at)
        queue.end(began)
        device = self._tracer.start_span("device", start_time=began)
        if failure:
            _fail(device, failure)
        return device

    @contextmanager
    def _span(self, name: str) -> Iterator[Span]:
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield span
            except (ServiceError, asyncio.CancelledError) as error:
                _fail(span, _code(error))
                raise


def _fail(span: Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, ServiceError) else "cancelled"
