"""Batches in the device process: answered in order, the next submitted while one runs, failures kept separate."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import pytest

from model.runtime.pixel_model import Part
from model.runtime.runner import BatchRunner, Rows
from service.devices.messages import BatchDone, BatchFailed, RunBatch
from service.devices.worker_loop import BROKEN, Answer, WorkerLoop
from service.jobs import Task


class FakeRunner:
    """A runner whose rows are slot numbers; batches wait until `gate` is opened."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.gate = threading.Event()
        self.submitted: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self.recovered = 0
        self.beyond_use = False

    def submit(self, slots: Sequence[int], parts: Collection[Part]) -> tuple[int, ...]:
        """Refuse slot 66 at once."""
        self.submitted.put(tuple(slots))
        if 66 in slots:
            raise RuntimeError("refused")
        return tuple(slots)

    def collect(self, flight: tuple[int, ...]) -> Rows:
        """Slot 77 fails on the device, slot 88 gives NaN, and slot 99 was computed again."""
        if self.depth > 1:
            assert self.gate.wait(10)
        if 77 in flight:
            raise MemoryError("no room")
        values = np.array([[slot] for slot in flight], np.float32)
        return Rows(None, values, -values, np.array([slot != 88 for slot in flight]), widened=flight.count(99))

    def recover(self) -> None:
        """Raise if the device cannot be used any more."""
        self.recovered += 1
        if self.beyond_use:
            raise RuntimeError("CUDA error")


def batch(number: int, *slots: int) -> RunBatch:
    """A batch that asks for embeddings of these slots."""
    return RunBatch(number, slots, (Task("embed"),) * len(slots))


def values(row: bytes | None) -> list[float]:
    """The numbers of a row."""
    assert row is not None
    return [float(one) for one in np.frombuffer(row, np.float32)]


def started(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> tuple[WorkerLoop, list[Answer], list[int]]:
    """A loop under test, the answers that it sends, and the exit statuses with which it ends the process."""
    answers: list[Answer] = []
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return WorkerLoop(cast(BatchRunner, cast(Any, runner)), answers.append), answers, statuses


def test_images_that_were_computed_again_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer has the number of images that were computed again, so that it can be counted."""
    loop, answers, _ = started(FakeRunner(depth=1), monkeypatch)
    loop.begin(batch(0, 5, 99))

    assert [1] == [answer.widened for answer in answers if isinstance(answer, BatchDone)]


def test_one_batch_at_a_time_is_answered_before_the_next_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a depth of one a batch is answered in the thread that reads, before the next one is read."""
    loop, answers, _ = started(FakeRunner(depth=1), monkeypatch)
    loop.begin(batch(0, 5))

    assert [0] == [answer.id for answer in answers]


def test_the_next_batch_is_taken_in_while_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a depth of two the next batch is submitted while one runs, and both are answered in order."""
    runner = FakeRunner(depth=2)
    loop, answers, _ = started(runner, monkeypatch)
    loop.begin(batch(0, 5, 6))
    loop.begin(batch(1, 7))

    assert [(5, 6), (7,)] == [runner.submitted.get(timeout=10) for _ in range(2)]
    assert [] == answers
    runner.gate.set()
    loop.close()
    assert [0, 1] == [answer.id for answer in answers]
    assert [[5.0], [6.0], [7.0]] == [values(row) for a in answers for row in cast(BatchDone, a).rows]


def test_a_batch_is_timed_from_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a batch begins at the end of the batch before it, not while it waits."""
    runner = FakeRunner(depth=2)
    loop, answers, _ = started(runner, monkeypatch)
    loop.begin(batch(0, 5))
    loop.begin(batch(1, 6))
    threading.Event().wait(0.2)
    runner.gate.set()
    loop.close()
    first, second = (cast(BatchDone, answer) for answer in answers)

    assert first.seconds >= 0.2
    assert second.seconds < first.seconds - 0.1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("bad", "kind"), [(66, "error"), (77, "out_of_memory")])
def test_a_batch_that_fails_is_answered_with_its_failure_alone(
    depth: int, bad: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is answered with its failure, and the batches around it with their rows."""
    runner = FakeRunner(depth)
    runner.gate.set()
    loop, answers, statuses = started(runner, monkeypatch)
    for number, slot in enumerate((5, bad, 6)):
        loop.begin(batch(number, slot))
    loop.close()
    good, failed, after = answers

    assert isinstance(good, BatchDone)
    assert isinstance(after, BatchDone)
    assert isinstance(failed, BatchFailed)
    assert (1, kind) == (failed.id, failed.kind)
    assert (1, []) == (runner.recovered, statuses)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_device_beyond_use_ends_the_process(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the device cannot recover after a failure, the process ends with the status BROKEN."""
    runner = FakeRunner(depth)
    runner.beyond_use = True
    runner.gate.set()
    loop, _, statuses = started(runner, monkeypatch)
    loop.begin(batch(0, 77))
    loop.close()

    assert [BROKEN] == statuses


def test_a_row_that_is_not_finite_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with NaN is sent as None."""
    loop, answers, _ = started(FakeRunner(depth=1), monkeypatch)
    loop.begin(batch(0, 5, 88))
    (done,) = answers

    assert isinstance(done, BatchDone)
    assert [True, False] == [row is not None for row in done.rows]


def test_parts_of_one_task_come_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job gets the parts that its own task asks for."""
    loop, answers, _ = started(FakeRunner(depth=1), monkeypatch)
    loop.begin(RunBatch(0, (5, 6), (Task("embed"), Task("embed", "mean"))))
    (done,) = answers

    assert isinstance(done, BatchDone)
    assert [[5.0], [-6.0]] == [values(row) for row in done.rows]


def test_a_parent_that_has_gone_is_no_error() -> None:
    """A closed connection to the parent raises no error when a result is sent."""

    def gone(answer: Answer) -> None:
        raise BrokenPipeError

    loop = WorkerLoop(cast(BatchRunner, cast(Any, FakeRunner(1))), gone)
    loop.begin(batch(0, 5))
