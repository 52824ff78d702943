"""What the service counts and times, for Prometheus.

`METRICS` lists every metric; `Metrics` owns one registry and has a method for each event. Labels take few values, all
known at start-up, and every series begins at zero so that rate() works from the first event.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)
from prometheus_client.exposition import choose_encoder

from model.preprocessing.colour import Kind
from service.errors import ServiceError
from service.fetch.outcome import Outcome
from service.jobs import Memory, RequestClass
from service.system.shared_counts import SharedCount, alone
from service.telemetry.multiprocess import MultiprocessDirectory, WithoutCreated, exposed_registry
from service.telemetry.rejections import REASONS, Reason

Op = Literal["classify", "embed"]
Stage = Literal["decode", "preprocess", "infer", "postprocess"]
Retry = Literal["error", "out_of_memory", "device_lost"]

# From 1 ms on a GPU to 10 s on a busy CPU.
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128)

_CODES = (200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table in the documentation."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    def counter(self, registry: CollectorRegistry) -> Counter:
        """A new counter of this name."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """A new gauge of this name."""
        return Gauge(self.name, self.help, self.labels, registry=registry, multiprocess_mode="livesum")

    def histogram(self, registry: CollectorRegistry, buckets: Iterable[float] = LATENCY) -> Histogram:
        """A new histogram of this name."""
        return Histogram(self.name, self.help, self.labels, registry=registry, buckets=tuple(buckets))


REQUESTS = Metric("vim_requests_total", "counter", ("api", "op", "model", "code"), "Requests answered, by status code.")
REQUEST_SECONDS = Metric(
    "vim_request_duration_seconds", "histogram", ("api", "op"), "From the request's first byte to its answer."
)
IMAGES = Metric("vim_images_total", "counter", ("op", "class"), "Images answered with a result.")
JOINED = Metric("vim_joined_images_total", "counter", (), "Images that shared the work of an identical one in flight.")
QUEUE_SECONDS = Metric("vim_queue_wait_seconds", "histogram", ("class",), "Time a decoded image waited for its turn.")
STAGE_SECONDS = Metric(
    "vim_stage_duration_seconds",
    "histogram",
    ("stage",),
    "Time in a stage: decode and preprocess for each image, infer for each batch, postprocess for each request.",
)
PROFILES = Metric(
    "vim_colour_profiles_total",
    "counter",
    ("kind",),
    "Images with a colour profile, in friendly mode, by what was done with it; a broken one is ignored.",
)
BATCH_SIZE = Metric("vim_batch_size", "histogram", (), "Images in a forward pass.")
BATCHES = Metric("vim_batches_total", "counter", (), "Forward passes.")
QUEUE_DEPTH = Metric("vim_queue_depth", "gauge", ("class",), "Images admitted and not yet answered.")
QUEUE_CAPACITY = Metric("vim_queue_capacity", "gauge", (), "Images that may be admitted at once.")
BODY_BYTES = Metric("vim_body_bytes", "gauge", ("class",), "Bytes of request bodies and fetched images in memory.")
BATCH_LIMIT = Metric(
    "vim_batch_limit", "gauge", ("device",), "Largest batch that a device is given; falls when memory ran out."
)
BATCH_RETRIES = Metric(
    "vim_batch_retries_total",
    "counter",
    ("reason",),
    "Parts of failed batches that were run again, by what had failed.",
)
DEVICE_UP = Metric("vim_device_up", "gauge", ("device",), "1 while a device process serves, 0 while it is replaced.")
DEVICE_LOST = Metric(
    "vim_device_lost_total", "counter", ("device",), "Device processes that died, hung or gave wrong answers."
)
QUARANTINED = Metric("vim_quarantined_images_total", "counter", (), "Images that killed a device process twice, alone.")
WIDENED = Metric(
    "vim_widened_images_total", "counter", (), "Images that overflowed float16 and were computed again in float32."
)
INFLIGHT = Metric("vim_inflight_batches", "gauge", (), "Batches on the device or handed to it.")
DECODING = Metric("vim_decode_busy", "gauge", (), "Threads busy decoding.")
DECODE_THREADS = Metric("vim_decode_threads", "gauge", (), "Threads that decode.")
REJECTED = Metric("vim_rejected_total", "counter", ("reason",), "Requests or images refused or given up, by reason.")
FETCHES = Metric("vim_fetches_total", "counter", ("outcome",), "Images fetched by URL, by how the fetch ended.")
FETCH_SECONDS = Metric(
    "vim_fetch_duration_seconds",
    "histogram",
    (),
    "Time of a fetch and of the wait for its turn.",
)
MODEL_INFO = Metric(
    "vim_model_info",
    "gauge",
    ("model", "family", "version", "device", "dtype"),
    "Always 1; the labels describe the served model.",
)
READY = Metric("vim_ready", "gauge", (), "1 while the server accepts work, else 0.")
LOAD_SECONDS = Metric("vim_model_load_seconds", "gauge", (), "Time to load, test and warm the model.")
MEMORY = Metric("vim_device_memory_bytes", "gauge", ("kind",), "Memory of the device; 0 where it has none of its own.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def _none() -> Mapping[RequestClass, SharedCount]:
    interactive, bulk = alone(2)
    return {"interactive": interactive, "bulk": bulk}


@dataclass(slots=True)
class Levels:
    """Current values, which their owners update in place; read whenever a page of metrics is made."""

    batches: int = 0  # with the devices
    images: Mapping[RequestClass, SharedCount] = field(default_factory=_none)  # admitted and not yet answered
    body_bytes: Mapping[RequestClass, SharedCount] = field(default_factory=_none)  # of request bodies in memory
    decoding: Sized = ()  # threads that decode now


class Metrics:
    """The metrics of one server. Every method may be called from any thread."""

    def __init__(
        self,
        *,
        model: str,
        queue_capacity: int,
        apis: Iterable[str] = ("native",),
        devices: Iterable[str] = (),
        shared: MultiprocessDirectory | None = None,
    ) -> None:
        self._model = model
        self._shared = shared
        self.levels = Levels()
        if shared:
            shared.use()
        self._registry = registry = CollectorRegistry()
        self._requests = REQUESTS.counter(registry)
        self._request_seconds = REQUEST_SECONDS.histogram(registry)
        self._images = IMAGES.counter(registry)
        self._joined = JOINED.counter(registry)
        self._queue_seconds = QUEUE_SECONDS.histogram(registry)
        self._stage_seconds = STAGE_SECONDS.histogram(registry)
        self._batch_size = BATCH_SIZE.histogram(registry, BATCH)
        self._batches = BATCHES.counter(registry)
        self._profiles = PROFILES.counter(registry)
        self._batch_limit = BATCH_LIMIT.gauge(registry)
        self._batch_retries = BATCH_RETRIES.counter(registry)
        self._device_up = DEVICE_UP.gauge(registry)
        self._device_lost = DEVICE_LOST.counter(registry)
        self._quarantined = QUARANTINED.counter(registry)
        self._widened = WIDENED.counter(registry)
        self._queue_depth = QUEUE_DEPTH.gauge(registry)
        self._body_bytes = BODY_BYTES.gauge(registry)
        self._inflight = INFLIGHT.gauge(registry)
        self._decoding = DECODING.gauge(registry)
        self._decode_threads = DECODE_THREADS.gauge(registry)
        self._rejected = REJECTED.counter(registry)
        self._fetches = FETCHES.counter(registry)
        self._fetch_seconds = FETCH_SECONDS.histogram(registry)
        self._model_info = MODEL_INFO.gauge(registry)
        self._ready = READY.gauge(registry)
        self._load_seconds = LOAD_SECONDS.gauge(registry)
        self._memory = MEMORY.gauge(registry)
        QUEUE_CAPACITY.gauge(registry).set(queue_capacity)
        self._exposed = exposed_registry(registry, shared)
        self._begin_at_zero(apis)
        # Cached by labels, which take few values: the library's own look-up takes longer than counting.
        self._requests_of = functools.cache(self._requests.labels)
        self._request_seconds_of = functools.cache(self._request_seconds.labels)
        self._images_of = functools.cache(self._images.labels)
        self._queue_seconds_of = functools.cache(self._queue_seconds.labels)
        self._stage_seconds_of = functools.cache(self._stage_seconds.labels)
        self._rejected_of = functools.cache(self._rejected.labels)
        for device in devices:
            self._device_up.labels(device)
            self._device_lost.labels(device)

    def decode_threads(self, count: int) -> None:
        """Set the number of threads that decode."""
        self._decode_threads.set(count)

    def request(self, api: str, op: Op, model: str, code: int, seconds: float) -> None:
        """Count an answered request. Any model name that is not the served one counts as `other`."""
        known = model if model == self._model else "other"
        self._requests_of(api, op, known, str(code)).inc()
        self._request_seconds_of(api, op).observe(seconds)

    def images(self, op: Op, request_class: RequestClass, count: int) -> None:
        """Count images that were answered with a result."""
        self._images_of(op, request_class).inc(count)

    def joined(self) -> None:
        """Count an image that shared the work of an identical one."""
        self._joined.inc()

    def timed(self, stage: Stage) -> AbstractContextManager[object]:
        """Observe the duration of the context as that of a stage."""
        return self._stage_seconds_of(stage).time()

    def decoded(self, decode_s: float, preprocess_s: float, profile: Kind | None = None) -> None:
        """Observe the decoding and the preprocessing of an image, and what was done with its colour profile."""
        if profile:
            self._profiles.labels(profile).inc()
        self._stage_seconds_of("decode").observe(decode_s)
        self._stage_seconds_of("preprocess").observe(preprocess_s)

    def batch(self, classes: Sequence[RequestClass], waits_s: Sequence[float], seconds: float) -> None:
        """Count a forward pass: the class and the waiting time of each of its images, and its duration."""
        self._batches.inc()
        self._batch_size.observe(len(waits_s))
        self._stage_seconds_of("infer").observe(seconds)
        for request_class, wait_s in zip(classes, waits_s, strict=True):
            self._queue_seconds_of(request_class).observe(wait_s)

    def sample(self) -> None:
        """Write the current levels to the gauges."""
        levels = self.levels
        self._inflight.set(levels.batches)
        self._decoding.set(len(levels.decoding))
        for one in get_args(RequestClass):
            self._queue_depth.labels(one).set(levels.images[one].own[0])
            self._body_bytes.labels(one).set(levels.body_bytes[one].own[0])

    def batch_limit(self, device: str, images: int) -> None:
        """Set the largest batch that a device is given."""
        self._batch_limit.labels(device).set(images)

    def batch_retried(self, reason: Retry, groups: int) -> None:
        """Count the parts of a failed batch that are run again."""
        self._batch_retries.labels(reason).inc(groups)

    def device_up(self, device: str, value: bool) -> None:
        """Set whether a device process serves."""
        self._device_up.labels(device).set(value)

    def device_lost(self, device: str) -> None:
        """Count a device process that died, hung or gave wrong answers."""
        self._device_lost.labels(device).inc()

    def widened(self, images: int) -> None:
        """Count images that were computed again in a wider dtype."""
        self._widened.inc(images)

    def quarantined(self) -> None:
        """Count an image that ended a device process twice while it was alone on the device."""
        self._quarantined.inc()

    def rejected(self, reason: Reason, count: int = 1) -> None:
        """Count work that was refused, or given up before it had a result."""
        self._rejected_of(reason).inc(count)

    def refused(self, error: ServiceError) -> None:
        """Count an error by its reason; failures of the service and wrong paths are not rejections."""
        if reason := REASONS.get(error.code):
            self.rejected(reason)

    def fetched(self, outcome: Outcome, seconds: float) -> None:
        """Count a fetch by how it ended, and observe its duration."""
        self._fetches.labels(outcome).inc()
        self._fetch_seconds.observe(seconds)

    def ready(self, value: bool) -> None:
        """Set whether the server accepts work."""
        self._ready.set(value)

    def model_loaded(self, *, family: str, version: str, device: str, dtype: str, seconds: float) -> None:
        """Describe the model, which is loaded, tested and warm. A reload replaces the labels."""
        if not self._shared:  # shared metrics cannot be cleared, and are set once
            self._model_info.clear()
        self._model_info.labels(self._model, family, version, device, dtype).set(1)
        self._load_seconds.set(seconds)

    def device_memory(self, kind: Memory, size: int) -> None:
        """Set the device's memory of this kind, in bytes."""
        self._memory.labels(kind).set(size)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page of metrics for an Accept header, and its Content-Type."""
        encode, content_type = choose_encoder(accept)
        self.sample()
        return encode(WithoutCreated(self._exposed)), content_type

    def _begin_at_zero(self, apis: Iterable[str]) -> None:
        for api, op in itertools.product(apis, get_args(Op)):
            self._request_seconds.labels(api, op)
            for code in _CODES:
                self._requests.labels(api, op, self._model, str(code))
        for op, request_class in itertools.product(get_args(Op), get_args(RequestClass)):
            self._images.labels(op, request_class)
        for metric, kind in (
            (self._queue_seconds, RequestClass),
            (self._stage_seconds, Stage),
            (self._rejected, Reason),
            (self._fetches, Outcome),
            (self._batch_retries, Retry),
            (self._memory, Memory),
        ):
            for value in get_args(kind):
                metric.labels(value)
