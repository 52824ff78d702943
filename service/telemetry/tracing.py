"""Records traces with OpenTelemetry. This module is imported only if VIM_TRACING is on.

FastAPI makes the span of a request. This module makes the spans below it: `image` for each image, and below that
`decode`, `queue` and `device`. When identical images are computed once, the work is in the trace of the first request;
the spans of the others have the attribute `vim.joined`. The standard OTEL_ variables select the exporter and sampling.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, StatusCode, format_trace_id, get_current_span, set_span_in_context

from service import __version__
from service.errors import SettingsError
from service.telemetry.tracer import ImageTrace

FLUSH_S = 5  # at the end, the longest wait for a collector that does not answer
UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"})


class OpenTelemetryTracer:
    """Records the spans of one application and sends them to the exporter."""

    enabled = True

    def __init__(self) -> None:
        """Raises SettingsError for an exporter or protocol that is not available."""
        self.provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._tracer = self.provider.get_tracer("vim", __version__)
        if exporter := _exporter():
            self.provider.add_span_processor(BatchSpanProcessor(exporter))

    def fastapi(self) -> Any:
        """The settings of FastAPI's telemetry: one span for each request, without contents; none for probes."""
        spans = {"tracing": True, "tracer_provider": self.provider, "operation_spans": False, "exclude": _untraced}
        return {**spans, "metrics": False, "logs": False, "auto_configure": False}

    def trace_id(self) -> str | None:
        """The trace id of the current request."""
        context = get_current_span().get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def annotate(self, fields: Mapping[str, object]) -> None:
        """Add the fields of a request's log line to its span."""
        span = get_current_span()
        for name, value in fields.items():
            if isinstance(value, (str, int, float)):
                span.set_attribute(f"vim.{name}", value)

    def image(self, trace: ImageTrace) -> None:
        """Record the spans of an image of the current request; the image ends now."""
        now, to_wall = time.monotonic(), time.time_ns() - time.monotonic_ns()
        image = self._tracer.start_span("image", start_time=to_wall + int(1e9 * trace.began))
        context = set_span_in_context(image)

        def stage(name: str, began: float, ended: float | None) -> Span:
            """Start a span below that of the image. The stage in which the image failed has the error of the image."""
            span = self._tracer.start_span(name, context, start_time=to_wall + int(1e9 * began))
            if ended is None and trace.error:
                _fail(span, trace.error)
            return span

        decoded = trace.queued is not None
        if trace.decode_began is not None:
            decode = stage("decode", trace.decode_began, trace.decode_ended if decoded else None)
            if decoded:
                decode.set_attribute("vim.decode_ms", 1000 * trace.decode_s)
                decode.set_attribute("vim.preprocess_ms", 1000 * trace.preprocess_s)
            decode.end(to_wall + int(1e9 * (trace.decode_ended or now)))
        if trace.queued is not None:
            queue = stage("queue", trace.queued, trace.device_began)
            queue.end(to_wall + int(1e9 * (trace.device_began or now)))
        if trace.device_began is not None:
            device = stage("device", trace.device_began, None)
            if not trace.error:
                device.set_attribute("vim.batch_size", trace.batch_size)
            device.end(to_wall + int(1e9 * now))
        if trace.joined:
            image.set_attribute("vim.joined", True)
        if trace.error:
            _fail(image, trace.error)
        image.end(to_wall + int(1e9 * now))

    def close(self) -> None:
        """Send the remaining spans; wait at most `FLUSH_S`. Blocks."""
        last = threading.Thread(target=self.provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_S)


def _untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in UNTRACED


def _resource() -> Resource:
    """The name and version of the service; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override them."""
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
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; use http/protobuf (port 4318)")
    raise SettingsError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {kind!r}")


def _fail(span: Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
