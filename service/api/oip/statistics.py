"""The `statistics` extension of the Open Inference Protocol: counts and nanoseconds since the start, by model name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from service.devices.usage import MODELS
from service.engine.engine import Answer
from service.jobs import Result
from service.system.shared_counts import SharedCount, SharedCounts, alone

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
_KINDS = ("success", "fail", *_STAGES, "cache_hit", "cache_miss")
NAMES = 2  # names of one model; see `service.api.oip.routes`


def numbers(largest_batch: int) -> int:
    """The number of counts that the statistics of all models need. Those that are not used take no memory."""
    return MODELS * NAMES * _numbers(largest_batch)


def _numbers(largest_batch: int) -> int:
    return 2 * len(_KINDS) + 1 + 2 * (largest_batch + 1)


class AllStatistics:
    """The statistics of each name of each model."""

    def __init__(self, largest_batch: int, counts: SharedCounts | None = None, first: int = 0) -> None:
        """`counts` holds `numbers(largest_batch)` from the index `first`; None: this process counts alone."""
        self._largest_batch = largest_batch
        self._counts = counts or alone(numbers(largest_batch))
        self._first = first
        self._found: dict[int, Statistics] = {}

    def of(self, model: int, *, pixels: bool) -> Statistics:
        """The statistics of the model with this number, for the name that takes encoded images, or pixels."""
        name = model * NAMES + pixels
        if name not in self._found:
            each = _numbers(self._largest_batch)
            first = self._first + name * each
            counts = self._counts[first : first + each]
            self._found[name] = Statistics(counts, self._largest_batch)
        return self._found[name]


class Statistics:
    """Counts the requests for one name of the model by this protocol."""

    def __init__(self, counts: list[SharedCount], largest_batch: int) -> None:
        self._last_ms, *counts = counts
        kinds, sizes = len(_KINDS), largest_batch + 1
        self._count = dict(zip(_KINDS, counts[:kinds], strict=True))
        self._ns = dict(zip(_KINDS, counts[kinds : 2 * kinds], strict=True))
        self._images_in = counts[2 * kinds :][:sizes]  # images that ran in batches of this size
        self._infer_ns_in = counts[2 * kinds + sizes :]

    def succeeded(self, answer: Answer, request_s: float, render_s: float) -> None:
        """Count a request that was answered. Each stage has the time of the slowest image."""
        times = answer.timings
        self._add("success", request_s)
        for stage, seconds in zip(
            _STAGES, (times.queue_s, times.decode_s + times.preprocess_s, times.infer_s, render_s), strict=True
        ):
            self._add(stage, seconds)
        self._ran([one for one in answer.outcomes if isinstance(one, Result)])
        self._last_ms.own[0] = time.time_ns() // 1_000_000

    def failed(self, request_s: float) -> None:
        """Count a request that was refused or has failed."""
        self._add("fail", request_s)

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`. A forward pass shared with other requests counts by its share of the batch."""
        images_in = [sum(count.parts) for count in self._images_in]
        executions = {size: images / size for size, images in enumerate(images_in) if images}
        return {
            "name": name,
            "version": version,
            "last_inference": max(self._last_ms.parts),
            "inference_count": sum(images_in),
            "execution_count": round(sum(executions.values())),
            "inference_stats": {
                kind: {"count": sum(self._count[kind].parts), "ns": sum(self._ns[kind].parts)} for kind in _KINDS
            },
            "batch_stats": [self._batch(size, round(count)) for size, count in executions.items()],
        }

    def _add(self, kind: str, seconds: float) -> None:
        self._count[kind].own[0] += 1
        self._ns[kind].own[0] += _ns(seconds)

    def _ran(self, results: Sequence[Result]) -> None:
        for one in results:
            self._images_in[one.batch_size].own[0] += 1
            self._infer_ns_in[one.batch_size].own[0] += _ns(one.infer_s / one.batch_size)

    def _batch(self, size: int, executions: int) -> dict[str, Any]:
        """One entry of `batch_stats`. It has one stage: only the device works on batches."""
        return {"batch_size": size, "compute_infer": {"count": executions, "ns": sum(self._infer_ns_in[size].parts)}}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
