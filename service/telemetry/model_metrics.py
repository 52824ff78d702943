"""What is counted of one served model. `service.telemetry.metrics` counts what belongs to the whole process."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, Histogram

from service.jobs import Memory, RequestClass
from service.telemetry import definitions
from service.telemetry.definitions import Load, Op, Retry
from service.telemetry.levels import Levels


class ModelFamilies:
    """The metrics with the label `model`, each with the series of all models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = definitions.REQUESTS.counter(registry)
        self.request_seconds = definitions.REQUEST_SECONDS.histogram(registry)
        self.images = definitions.IMAGES.counter(registry)
        self.queue_seconds = definitions.QUEUE_SECONDS.histogram(registry)
        self.batch_size = definitions.BATCH_SIZE.histogram(registry, definitions.BATCH)
        self.batches = definitions.BATCHES.counter(registry)
        self.batch_limit = definitions.BATCH_LIMIT.gauge(registry)
        self.batch_retries = definitions.BATCH_RETRIES.counter(registry)
        self.device_up = definitions.DEVICE_UP.gauge(registry)
        self.device_lost = definitions.DEVICE_LOST.counter(registry)
        self.quarantined = definitions.QUARANTINED.counter(registry)
        self.widened = definitions.WIDENED.counter(registry)
        self.model_info = definitions.MODEL_INFO.gauge(registry)
        self.ready = definitions.READY.gauge(registry)
        self.loads = definitions.LOADS.counter(registry)
        self.load_seconds = definitions.LOAD_SECONDS.gauge(registry)
        self.memory = definitions.MEMORY.gauge(registry)
        # Cached by labels, which take few values: the library's own look-up takes longer than counting.
        self._requests_of = functools.cache(self.requests.labels)
        self._request_seconds_of = functools.cache(self.request_seconds.labels)

    def request(self, api: str, op: Op, model: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests_of(api, op, model, str(code)).inc()
        self._request_seconds_of(api, op, model).observe(seconds)


class ModelMetrics:
    """The metrics of one model. Every method may be called from any thread."""

    def __init__(self, name: str, families: ModelFamilies, levels: Levels, infer: Histogram, *, shared: bool) -> None:
        """`infer` times the forward passes of all models. `shared`: several processes count in files."""
        self.name = name
        self.levels = levels  # of the whole process
        self._families = families
        self._shared = shared
        self._described: tuple[str, ...] | None = None  # labels of vim_model_info
        self._infer_seconds = infer
        self._batches = families.batches.labels(name)
        self._batch_size = families.batch_size.labels(name)
        self._quarantined = families.quarantined.labels(name)
        self._widened = families.widened.labels(name)
        self._load_seconds = families.load_seconds.labels(name)
        self._images_of = functools.cache(functools.partial(families.images.labels, name))
        self._queue_seconds_of = functools.cache(functools.partial(families.queue_seconds.labels, name))

    def begin_at_zero(self, apis: Iterable[str], devices: Iterable[str]) -> None:
        """Create the series whose labels are known."""
        families = self._families
        families.ready.labels(self.name)
        for api, op in itertools.product(apis, get_args(Op)):
            families.request_seconds.labels(api, op, self.name)
            for code in definitions.CODES:
                families.requests.labels(api, op, self.name, str(code))
        for op, request_class in itertools.product(get_args(Op), get_args(RequestClass)):
            self._images_of(op, request_class)
        for metric, values in (
            (families.queue_seconds, get_args(RequestClass)),
            (families.batch_retries, get_args(Retry)),
            (families.loads, get_args(Load)),
            (families.memory, get_args(Memory)),
            (families.device_up, devices),
            (families.device_lost, devices),
        ):
            for value in values:
                metric.labels(self.name, value)

    # --- requests ---------------------------------------------------------------------------------------------

    def request(self, api: str, op: Op, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._families.request(api, op, self.name, code, seconds)

    def images(self, op: Op, request_class: RequestClass, count: int) -> None:
        """Count images that were answered with a result."""
        self._images_of(op, request_class).inc(count)

    # --- batches ----------------------------------------------------------------------------------------------

    def batch(self, classes: Sequence[RequestClass], waits_s: Sequence[float], seconds: float) -> None:
        """Count a forward pass: the class and the waiting time of each of its images, and its duration."""
        self._batches.inc()
        self._batch_size.observe(len(waits_s))
        self._infer_seconds.observe(seconds)
        for request_class, wait_s in zip(classes, waits_s, strict=True):
            self._queue_seconds_of(request_class).observe(wait_s)

    def batch_limit(self, device: str, images: int) -> None:
        """Set the largest batch that a device is given."""
        self._families.batch_limit.labels(self.name, device).set(images)

    def batch_retried(self, reason: Retry, groups: int) -> None:
        """Count the parts of a failed batch that are run again."""
        self._families.batch_retries.labels(self.name, reason).inc(groups)

    def widened(self, images: int) -> None:
        """Count images that were computed again in a wider dtype."""
        self._widened.inc(images)

    def quarantined(self) -> None:
        """Count an image that ended a device process twice while it was alone on the device."""
        self._quarantined.inc()

    # --- devices ----------------------------------------------------------------------------------------------

    def device_up(self, device: str, value: bool) -> None:
        """Set whether a device process serves."""
        self._families.device_up.labels(self.name, device).set(value)

    def device_lost(self, device: str) -> None:
        """Count a device process that died, hung or gave wrong answers."""
        self._families.device_lost.labels(self.name, device).inc()

    def device_memory(self, kind: Memory, size: int) -> None:
        """Set the device's memory of this kind, in bytes."""
        self._families.memory.labels(self.name, kind).set(size)

    # --- the model --------------------------------------------------------------------------------------------

    def ready(self, value: bool) -> None:
        """Set whether the model accepts work."""
        self._families.ready.labels(self.name).set(value)

    def model_loaded(self, *, family: str, version: str, device: str, dtype: str, seconds: float) -> None:
        """Count a load, and describe the model, which is tested and warm. The former description is replaced."""
        self._families.loads.labels(self.name, "loaded").inc()
        self._load_seconds.set(seconds)
        if self._described:
            self._forget(self._described)
        self._described = (self.name, family, version, device, dtype)
        self._families.model_info.labels(*self._described).set(1)

    def load_failed(self) -> None:
        """Count a load that failed."""
        self._families.loads.labels(self.name, "failed").inc()

    def unloaded(self) -> None:
        """Remove what describes the model and its devices: it is no longer served. Counters stay."""
        if self._described:
            self._forget(self._described)
            self._described = None
        for gauge in (self._families.ready, self._families.device_up, self._families.batch_limit):
            _remove(gauge, self.name, shared=self._shared)

    def _forget(self, described: tuple[str, ...]) -> None:
        """Remove a series of vim_model_info. A series in the files of several processes can only be set to 0."""
        if self._shared:
            self._families.model_info.labels(*described).set(0)
        else:
            self._families.model_info.remove(*described)


def _remove(gauge: Gauge, model: str, *, shared: bool) -> None:
    """Remove the series of a model. One in the files of several processes becomes NaN, which no alert compares."""
    for sample in [one for family in gauge.collect() for one in family.samples if one.labels.get("model") == model]:
        if shared:
            gauge.labels(**sample.labels).set(math.nan)
        else:
            gauge.remove(*sample.labels.values())
