"""Traces: one for each request, with a span for every stage of every image; off by default."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from fastapi import FastAPI

from service.app import create_app, infer_app
from service.engine.engine import Engine
from service.errors import SettingsError
from service.grpc.server import grpc_server
from service.settings import Settings
from tests.service.conftest import running, settings_for
from tests.tiny import photo

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs the extra: tracing")
memory = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs the extra: tracing"
)
pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass(frozen=True)
class Span:
    """The parts of a span that the tests compare."""

    name: str
    id: int
    parent: int | None
    trace: str
    start: int
    end: int
    ok: bool
    attributes: dict[str, object]


@dataclass(frozen=True)
class Traced:
    """A client of an application that records its spans."""

    app: FastAPI
    client: httpx.AsyncClient
    engine: Engine
    exporter: memory.InMemorySpanExporter  # type: ignore[name-defined]

    async def spans(self) -> list[Span]:
        """The spans that have ended since the last call, oldest first."""
        await asyncio.sleep(0)
        found = [_span(span) for span in self.exporter.get_finished_spans()]
        self.exporter.clear()
        return sorted(found, key=lambda span: span.start)


def _span(span: sdk.ReadableSpan) -> Span:  # type: ignore[name-defined]
    parent = span.parent and span.parent.span_id
    trace, ok = f"{span.context.trace_id:032x}", span.status.status_code.name != "ERROR"
    attributes = dict(span.attributes or {})
    return Span(span.name, span.context.span_id, parent, trace, span.start_time, span.end_time, ok, attributes)


@pytest.fixture(scope="module")
async def traced(tiny_model: Path, anyio_backend: object) -> AsyncIterator[Traced]:
    """A running application whose spans stay in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "none")
        app = create_app(settings_for(tiny_model, tracing=True, max_batch=8, queue_images=8, max_wait_ms=200))
    exporter = memory.InMemorySpanExporter()
    app.state.tracer.provider.add_span_processor(sdk.SimpleSpanProcessor(exporter))
    async with running(app) as client:
        exporter.clear()
        yield Traced(app, client, app.state.engine, exporter)


async def test_a_request_is_a_trace_with_a_span_for_each_stage(traced: Traced) -> None:
    """The spans decode, queue and device follow each other below `image`, which is below the request's span."""
    await traced.client.post("/v1/classify", content=photo(50))
    request, image, decode, queue, device = await traced.spans()

    assert ["POST /v1/classify", "image", "decode", "queue", "device"] == [
        span.name for span in (request, image, decode, queue, device)
    ]
    assert image.parent == request.id
    assert {image.id} == {span.parent for span in (decode, queue, device)}
    assert request.start <= image.start <= decode.start <= decode.end <= queue.start <= queue.end == device.start
    assert device.start < device.end <= image.end <= request.end
    assert 1 == device.attributes["vim.batch_size"]
    assert {"vim.outcome": "ok", "vim.images": 1, "vim.op": "classify", "http.response.status_code": 200}.items() <= (
        request.attributes.items()
    )


async def test_every_image_of_a_request_has_its_own_spans(traced: Traced) -> None:
    """Each image of a request has spans; that of a damaged image has its error, and the request still succeeds."""
    files = [("image", photo(seed)) for seed in (51, 52, 53)]
    await traced.client.post("/v1/classify", files=[*files, ("image", photo(54)[:300])])
    spans = await traced.spans()
    named = {name: [span for span in spans if span.name == name] for name in ("image", "decode", "queue", "device")}
    failed = [span for span in named["image"] if not span.ok]

    assert [4, 4, 3, 3] == [len(found) for found in named.values()]
    assert 1 == len({span.trace for span in spans})
    assert [3, 3, 3] == [span.attributes["vim.batch_size"] for span in named["device"]]
    assert ["unsupported_image"] == [span.attributes["error.type"] for span in failed]
    assert spans[0].ok
    assert 1 == spans[0].attributes["vim.failed_images"]


async def test_a_refused_request_has_its_reason_and_no_stages(traced: Traced) -> None:
    """A request that is refused, for a full queue or a wrong option, has the reason and no stages."""
    slots = traced.engine.admission.admit("interactive", 8)
    await traced.client.post("/v1/classify", content=photo())
    traced.engine.admission.leave(slots, answered=False)
    await traced.client.post("/v1/classify?top_k=-1", content=photo())
    spans = await traced.spans()

    assert ["POST /v1/classify"] * 2 == [span.name for span in spans]
    assert ["queue_full", "invalid_options"] == [span.attributes["vim.outcome"] for span in spans]
    assert [429, 422] == [span.attributes["http.response.status_code"] for span in spans]


async def test_a_deadline_ends_the_wait_and_the_trace_shows_where(traced: Traced) -> None:
    """A request whose deadline passed while its image was queued has no device span."""
    answer = await traced.client.post("/v1/classify", content=photo(55), headers={"X-Request-Timeout-Ms": "100"})
    await asyncio.sleep(0.05)
    spans = {span.name: span for span in await traced.spans()}

    assert 504 == answer.status_code
    assert {"POST /v1/classify", "image", "decode", "queue"} == spans.keys()
    assert "cancelled" == spans["queue"].attributes["error.type"]
    assert not spans["POST /v1/classify"].ok


async def test_identical_images_share_the_work_of_the_first(traced: Traced) -> None:
    """Of two requests with one image, the second has a trace of its own whose image span is marked as joined."""
    await asyncio.gather(*(traced.client.post("/v1/classify", content=photo(56)) for _ in range(2)))
    spans = await traced.spans()

    assert 2 == len({span.trace for span in spans})
    assert 1 == sum(span.name == "device" for span in spans)
    assert [None, True] == sorted((s.attributes.get("vim.joined") for s in spans if s.name == "image"), key=bool)


async def test_the_callers_trace_goes_on_and_the_log_knows_it(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    """The trace continues that of a W3C traceparent header; without one the log has the id of the new trace."""
    with caplog.at_level(logging.INFO, "vim.request"):
        header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        await traced.client.post("/v1/classify", content=photo(57), headers=header)
        await traced.client.post("/v1/classify", content=photo(58))
    spans = [span for span in await traced.spans() if span.name.startswith("POST")]
    logged = [vars(record)["fields"]["trace_id"] for record in caplog.records if record.name == "vim.request"]

    assert TRACE == spans[0].trace
    assert int(PARENT, 16) == spans[0].parent
    assert [span.trace for span in spans] == logged
    assert TRACE != logged[1]


async def test_a_call_over_grpc_continues_the_callers_trace(traced: Traced, unused_port: int) -> None:
    """The metadata traceparent of a gRPC call has the effect of the HTTP header; the stages are below its span."""
    settings = Settings(host="127.0.0.1", grpc_port=unused_port)
    tensor = triton.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo(59)]], dtype=object))
    async with (
        grpc_server(traced.app, infer_app(traced.app), settings, connections=10),
        triton.InferenceServerClient(f"127.0.0.1:{unused_port}") as client,
    ):
        await client.infer("tiny", [tensor], headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    request, image, *stages = await traced.spans()

    assert ["image", "decode", "queue", "device"] == [span.name for span in (image, *stages)]
    assert {TRACE} == {span.trace for span in (request, image, *stages)}
    assert (int(PARENT, 16), request.id) == (request.parent, image.parent)
    assert "grpc" == request.attributes["vim.api"]


async def test_probes_leave_no_trace(traced: Traced) -> None:
    """Probes have no traces, because orchestrators send them every few seconds."""
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live"):
        assert 200 == (await traced.client.get(path)).status_code

    assert [] == await traced.spans()


class Collector(BaseHTTPRequestHandler):
    """Receives exported spans, as a collector does."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        """OTLP over HTTP: a protobuf message."""
        assert "/v1/traces" == self.path
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Suppress the log of the test server."""


async def test_spans_reach_a_collector_before_the_service_ends(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All spans reach the collector of OTEL_EXPORTER_OTLP_ENDPOINT by OTLP over HTTP before the service ends."""
    messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    async with running(create_app(settings_for(tiny_model, tracing=True))) as client:
        await client.post("/v1/classify", content=photo())
    server.shutdown()
    server.server_close()
    requests = [messages.ExportTraceServiceRequest.FromString(body) for body in Collector.received]
    spans = [span for r in requests for group in r.resource_spans for part in group.scope_spans for span in part.spans]

    assert {"POST /v1/classify", "image", "decode", "queue", "device"} == {span.name for span in spans}


def test_a_dead_collector_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    """The shutdown does not wait for a collector that does not answer; unsent spans are dropped."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr("service.telemetry.tracing.FLUSH_S", 0.1)
    from service.telemetry.tracing import OpenTelemetryTracer

    tracer = OpenTelemetryTracer()
    tracer.provider.get_tracer("test").start_span("lost").end()
    tracer.close()


def test_who_we_are_can_be_said_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME overrides our own name."""
    from service.telemetry.tracing import OpenTelemetryTracer

    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert "vim-server" == OpenTelemetryTracer().provider.resource.attributes["service.name"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    assert "pictures" == OpenTelemetryTracer().provider.resource.attributes["service.name"]


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_an_exporter_that_is_not_there_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """An exporter that is not available is an error of the settings, instead of no traces."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=value):
        create_app(Settings(tracing=True))


def test_a_missing_extra_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that installs the extra."""
    monkeypatch.setitem(sys.modules, "service.telemetry.tracing", None)
    with pytest.raises(SettingsError, match=r"\.\[tracing\]"):
        create_app(Settings(tracing=True))


def test_nothing_is_imported_when_it_is_off() -> None:
    """If tracing is off, neither our module nor the SDK is imported, and FastAPI's telemetry is off too."""
    code = (
        "from service.app import create_app; from service.settings import Settings; import sys\n"
        "app = create_app(Settings())\n"
        "print([n for n in sys.modules if n == 'service.telemetry.tracing' or n.startswith('opentelemetry.sdk')],"
        "app._native_telemetry.enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "[] False\n" == done.stdout
