"""What processes say to each other arrives as it was said."""

from __future__ import annotations

import numpy as np

from service.devices.messages import HEADER, BatchDone, RunBatch, pack, unpack
from service.jobs import Task


def test_a_batch_arrives_as_it_was_ordered() -> None:
    """Every field of every task."""
    order = RunBatch(7, (3, 5), (Task("classify", embedding_too=True), Task("embed", "mean")))

    assert order == unpack(pack(order)[HEADER.size :])


def test_rows_arrive_in_order_with_their_gaps() -> None:
    """Of different lengths, none of them where the model gave no number."""
    rows = (np.arange(5, dtype=np.float32), None, np.array([-0.0, 1e-45], np.float32))
    done = unpack(pack(BatchDone(7, rows, 0.25))[HEADER.size :])

    assert isinstance(done, BatchDone)
    assert (7, 0.25) == (done.id, done.seconds)
    assert [None if row is None else row.tobytes() for row in rows] == [
        None if row is None else row.tobytes() for row in done.rows
    ]
    assert {np.dtype(np.float32)} == {row.dtype for row in done.rows if row is not None}
