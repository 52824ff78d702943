"""The list of metrics: name, kind, labels and help text of each, and how Prometheus's objects are made from it.

`service.telemetry.metrics` counts. Labels take few values, all known at start-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Op = Literal["classify", "embed"]
Stage = Literal["decode", "preprocess", "infer", "postprocess"]
Retry = Literal["error", "out_of_memory", "device_lost"]
Load = Literal["loaded", "failed"]

# From 1 ms on a GPU to 10 s on a busy CPU.
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128)

CODES = (200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)


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
    "vim_request_duration_seconds", "histogram", ("api", "op", "model"), "From the request's first byte to its answer."
)
IMAGES = Metric("vim_images_total", "counter", ("model", "op", "class"), "Images answered with a result.")
JOINED = Metric("vim_joined_images_total", "counter", (), "Images that shared the work of an identical one in flight.")
QUEUE_SECONDS = Metric(
    "vim_queue_wait_seconds", "histogram", ("model", "class"), "Time a decoded image waited for its turn."
)
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
BATCH_SIZE = Metric("vim_batch_size", "histogram", ("model",), "Images in a forward pass.")
BATCHES = Metric("vim_batches_total", "counter", ("model",), "Forward passes.")
QUEUE_DEPTH = Metric("vim_queue_depth", "gauge", ("class",), "Images admitted and not yet answered.")
QUEUE_CAPACITY = Metric("vim_queue_capacity", "gauge", (), "Images that may be admitted at once.")
BODY_BYTES = Metric("vim_body_bytes", "gauge", ("class",), "Bytes of request bodies and fetched images in memory.")
BATCH_LIMIT = Metric(
    "vim_batch_limit", "gauge", ("model", "device"), "Largest batch that a device is given; falls when memory ran out."
)
BATCH_RETRIES = Metric(
    "vim_batch_retries_total",
    "counter",
    ("model", "reason"),
    "Parts of failed batches that were run again, by what had failed.",
)
DEVICE_UP = Metric(
    "vim_device_up", "gauge", ("model", "device"), "1 while a device process serves, 0 while it is replaced."
)
DEVICE_LOST = Metric(
    "vim_device_lost_total", "counter", ("model", "device"), "Device processes that died, hung or gave wrong answers."
)
QUARANTINED = Metric(
    "vim_quarantined_images_total", "counter", ("model",), "Images that killed a device process twice, alone."
)
WIDENED = Metric(
    "vim_widened_images_total",
    "counter",
    ("model",),
    "Images that overflowed float16 and were computed again in float32.",
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
    "1 for what is served now, described by the labels. With several HTTP processes, 0 for what was served before.",
)
READY = Metric("vim_ready", "gauge", ("model",), "1 while the model accepts work, else 0.")
LOADS = Metric("vim_model_loads_total", "counter", ("model", "outcome"), "Loads of a model, by how they ended.")
LOAD_SECONDS = Metric("vim_model_load_seconds", "gauge", ("model",), "Time to load, test and warm the model.")
MEMORY = Metric(
    "vim_device_memory_bytes",
    "gauge",
    ("model", "kind"),
    "Memory of the device: allocated and reserved for the model, and in total; 0 where it has none of its own.",
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
