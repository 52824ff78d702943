"""What the Open Inference Protocol's `statistics` extension tells of one model since the start, in nanoseconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from service.engine import Answer
from service.jobs import Result

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counts the requests that came to one model by this protocol."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._ns: Counter[str] = Counter()
        self._images_in: Counter[int] = Counter()  # images that ran in batches of this size
        self._infer_ns_in: Counter[int] = Counter()
        self._last_ms = 0

    def succeeded(self, answer: Answer, request_s: float, render_s: float) -> None:
        """A request was answered; of its images the slowest counts, stage by stage."""
        times = answer.timings
        self._add("success", request_s)
        for stage, seconds in zip(
            _STAGES, (times.queue_s, times.decode_s + times.preprocess_s, times.infer_s, render_s), strict=True
        ):
            self._add(stage, seconds)
        self._ran([one for one in answer.outcomes if isinstance(one, Result)])
        self._last_ms = time.time_ns() // 1_000_000

    def failed(self, request_s: float) -> None:
        """A request was refused, or failed."""
        self._add("fail", request_s)

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`. A forward pass shared with others counts by this model's part of it."""
        kinds = ("success", "fail", *_STAGES, "cache_hit", "cache_miss")
        executions = {size: images / size for size, images in self._images_in.items()}
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": sum(self._images_in.values()),
            "execution_count": round(sum(executions.values())),
            "inference_stats": {kind: {"count": self._count[kind], "ns": self._ns[kind]} for kind in kinds},
            "batch_stats": [self._batch(size, round(count)) for size, count in sorted(executions.items())],
        }

    def _add(self, kind: str, seconds: float) -> None:
        self._count[kind] += 1
        self._ns[kind] += _ns(seconds)

    def _ran(self, results: Sequence[Result]) -> None:
        for one in results:
            self._images_in[one.batch_size] += 1
            self._infer_ns_in[one.batch_size] += _ns(one.infer_s / one.batch_size)

    def _batch(self, size: int, executions: int) -> dict[str, Any]:
        """Only the device works on batches; images are decoded and answers written one by one."""
        return {"batch_size": size, "compute_infer": {"count": executions, "ns": self._infer_ns_in[size]}}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
