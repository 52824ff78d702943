"""What the service counts and times, for Prometheus.

`Metrics` owns one registry and has a method for each event of the process; `Metrics.model` has those of one model.
Every series begins at zero, so that rate() works from the first event. The metrics are listed in
`service.telemetry.definitions`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from model.preprocessing.colour import Kind
from service.errors import ServiceError
from service.fetch.outcome import Outcome
from service.jobs import RequestClass
from service.telemetry import definitions
from service.telemetry.definitions import Op, Stage
from service.telemetry.levels import Levels
from service.telemetry.model_metrics import ModelFamilies, ModelMetrics
from service.telemetry.multiprocess import MultiprocessDirectory, WithoutCreated, exposed_registry
from service.telemetry.rejections import REASONS, Reason

OTHER = "other"  # counts the requests for models that are not served


class Metrics:
    """The metrics of one process. Every method may be called from any thread."""

    def __init__(
        self,
        *,
        queue_capacity: int,
        apis: Iterable[str] = ("native",),
        devices: Iterable[str] = (),
        shared: MultiprocessDirectory | None = None,
    ) -> None:
        """The series of every model begin at zero for these `apis` and `devices`."""
        self.levels = Levels()
        self._apis, self._devices = tuple(apis), tuple(devices)
        self._shared = shared is not None
        self._models: dict[str, ModelMetrics] = {}
        if shared:
            shared.use()
        registry = CollectorRegistry()
        self._families = ModelFamilies(registry)
        self._joined = definitions.JOINED.counter(registry)
        self._stage_seconds = definitions.STAGE_SECONDS.histogram(registry)
        self._profiles = definitions.PROFILES.counter(registry)
        self._queue_depth = definitions.QUEUE_DEPTH.gauge(registry)
        self._body_bytes = definitions.BODY_BYTES.gauge(registry)
        self._inflight = definitions.INFLIGHT.gauge(registry)
        self._decoding = definitions.DECODING.gauge(registry)
        self._decode_threads = definitions.DECODE_THREADS.gauge(registry)
        self._rejected = definitions.REJECTED.counter(registry)
        self._fetches = definitions.FETCHES.counter(registry)
        self._fetch_seconds = definitions.FETCH_SECONDS.histogram(registry)
        definitions.QUEUE_CAPACITY.gauge(registry).set(queue_capacity)
        self._exposed = exposed_registry(registry, shared)
        self._begin_at_zero()
        # Cached by labels, which take few values: the library's own look-up takes longer than counting.
        self._stage_seconds_of = functools.cache(self._stage_seconds.labels)
        self._rejected_of = functools.cache(self._rejected.labels)

    def model(self, name: str) -> ModelMetrics:
        """The metrics of a served model. The first call registers the name: its series begin at zero."""
        if name not in self._models:
            infer = self._stage_seconds.labels("infer")
            made = ModelMetrics(name, self._families, self.levels, infer, shared=self._shared)
            made.begin_at_zero(self._apis, self._devices)
            self._models.setdefault(name, made)  # another thread may have been faster
        return self._models[name]

    def decode_threads(self, count: int) -> None:
        """Set the number of threads that decode."""
        self._decode_threads.set(count)

    def request(self, api: str, op: Op, model: str | None, code: int, seconds: float) -> None:
        """Count an answered request; None is the model that was registered first.

        A name that is not registered counts as `other`: clients choose it.
        """
        found = next(iter(self._models.values()), None) if model is None else self._models.get(model)
        if found is not None:
            found.request(api, op, code, seconds)
        else:
            self._families.request(api, op, OTHER, code, seconds)

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

    def sample(self) -> None:
        """Write the current levels to the gauges."""
        levels = self.levels
        self._inflight.set(levels.batches)
        self._decoding.set(len(levels.decoding))
        for one in get_args(RequestClass):
            self._queue_depth.labels(one).set(levels.images[one].own[0])
            self._body_bytes.labels(one).set(levels.body_bytes[one].own[0])

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

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page of metrics for an Accept header, and its Content-Type."""
        encode, content_type = choose_encoder(accept)
        self.sample()
        return encode(WithoutCreated(self._exposed)), content_type

    def _begin_at_zero(self) -> None:
        for metric, kind in ((self._stage_seconds, Stage), (self._rejected, Reason), (self._fetches, Outcome)):
            for value in get_args(kind):
                metric.labels(value)
