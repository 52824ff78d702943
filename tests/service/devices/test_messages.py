"""Messages between processes arrive unchanged."""

from __future__ import annotations

import io

import numpy as np

from service import ipc
from service.devices.messages import BatchDone, FromDevice, RunBatch, ToDevice
from service.jobs import Task


def test_a_batch_arrives_as_it_was_sent() -> None:
    """Every field of every task in a batch is restored, with its type."""
    order = RunBatch(7, (3, 5), (Task("classify", embedding_too=True), Task("embed", "mean")))
    received = ipc.read(io.BytesIO(ipc.pack(order)), ToDevice)

    assert order == received
    assert (RunBatch, Task) == (type(received), type(received.tasks[0]))


def test_rows_arrive_in_order_with_their_gaps() -> None:
    """Rows arrive in order, may have different lengths, and are None where a value was not finite."""
    rows = (np.arange(5, dtype=np.float32).tobytes(), None, np.array([-0.0, 1e-45], np.float32).tobytes())

    assert BatchDone(7, rows, 0.25) == ipc.read(io.BytesIO(ipc.pack(BatchDone(7, rows, 0.25))), FromDevice)
