"""In the device process: submits batches to the runner and sends their results to the parent.

If the runner takes several batches at a time, a second thread collects and sends results. A batch that fails is
answered with its failure; a device that cannot be used any more ends the process, and the parent starts another.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from model.runtime.pixel_model import Part as PassPart
from model.runtime.runner import BatchRunner, Rows, is_out_of_memory
from service.devices.messages import BatchDone, BatchFailed, RunBatch
from service.jobs import Part

log = logging.getLogger("vim.worker")

BROKEN = 70  # exit status: EX_SOFTWARE

Answer = BatchDone | BatchFailed


@dataclass(frozen=True, slots=True)
class _Begun:
    batch: RunBatch
    started: float
    handle: Any  # the argument of `BatchRunner.collect`
    failed: BatchFailed | None = None


class WorkerLoop:
    """The batches between `submit` and `collect` of the runner, in order."""

    def __init__(self, runner: BatchRunner, send: Callable[[Answer], None]) -> None:
        self._runner = runner
        self._send = send
        self._ended_at = 0.0  # when the last batch ended; the time of the next one begins no earlier
        self._begun: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if runner.depth > 1:
            self._thread = threading.Thread(target=self._answer_all, name="answer", daemon=True)
            self._thread.start()

    def begin(self, batch: RunBatch) -> None:
        """Submit a batch to the runner; its result is sent to the parent when it is ready."""
        begun = self._submit(batch)
        if self._thread is None:
            self._answer(begun)
        else:
            self._begun.put(begun)

    def close(self) -> None:
        """Answer all submitted batches, then return."""
        if self._thread is not None:
            self._begun.put(None)
            self._thread.join()

    def _submit(self, batch: RunBatch) -> _Begun:
        started = time.perf_counter()
        try:
            parts = {_computed(part) for task in batch.tasks for part in task.parts}
            return _Begun(batch, started, self._runner.submit(batch.slots, parts))
        except Exception as error:  # only this batch is answered with the failure
            return _Begun(batch, started, None, self._failed(batch, error))

    def _answer_all(self) -> None:
        while (begun := self._begun.get()) is not None:
            self._answer(begun)

    def _answer(self, begun: _Begun) -> None:
        try:
            self._send(self._collect(begun))
        except (BrokenPipeError, ConnectionResetError):  # the reading thread ends the process
            log.info("the parent is gone")

    def _collect(self, begun: _Begun) -> Answer:
        if begun.failed is not None:
            return begun.failed
        try:
            collected = self._runner.collect(begun.handle)
            rows = self._rows_of(begun.batch, collected)
        except Exception as error:
            return self._failed(begun.batch, error)
        started, self._ended_at = max(begun.started, self._ended_at), time.perf_counter()
        return BatchDone(begun.batch.id, rows, self._ended_at - started, collected.widened)

    def _rows_of(self, batch: RunBatch, rows: Rows) -> tuple[bytes | None, ...]:
        found: dict[Part, Any] = {"scores": rows.scores, "cls": rows.cls, "mean": rows.mean}
        if any(task.in_domain for task in batch.tasks):
            found["in_domain"] = self._in_domain(rows)
        return tuple(
            np.concatenate([found[part][i] for part in task.parts]).tobytes() if finite else None
            for i, (task, finite) in enumerate(zip(batch.tasks, rows.finite, strict=True))
        )

    def _in_domain(self, rows: Rows) -> np.ndarray:
        """(N, 1). A row that is not finite gets any number; its image gets an error."""
        domain = self._runner.vim.domain
        assert domain is not None  # the parent asks only for what the model has
        assert rows.cls is not None
        with np.errstate(all="ignore"):
            return domain.score(rows.cls)[:, None]

    def _failed(self, batch: RunBatch, error: Exception) -> BatchFailed:
        log.error("batch %d of %d images failed", batch.id, len(batch.slots), exc_info=error)
        try:
            self._runner.recover()
        except Exception:
            log.critical("the device cannot be used any more; this process ends", exc_info=True)
            logging.shutdown()
            os._exit(BROKEN)
        kind: Literal["error", "out_of_memory"] = "out_of_memory" if is_out_of_memory(error) else "error"
        return BatchFailed(batch.id, kind, f"{type(error).__name__}: {error}")


def _computed(part: Part) -> PassPart:
    """The output of the forward pass that a part needs."""
    return "cls" if part == "in_domain" else part
