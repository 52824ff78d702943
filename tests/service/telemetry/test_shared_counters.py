"""Counters that several processes add up."""

from __future__ import annotations

import os

from service.telemetry.shared_counters import SharedCounters, memory


def test_each_writes_its_row_and_reads_the_sum() -> None:
    """Two processes add to the same counters, and a successor continues the row of the first one."""
    descriptor = memory(2, 3)
    one, two = (SharedCounters.mapped(descriptor, 2, 3, own) for own in (0, 1))
    one.add(0, 5)
    two.add(0, 7)
    two.put(2, 9)
    successor = SharedCounters.mapped(descriptor, 2, 3, 0)
    successor.add(0, 1)
    os.close(descriptor)

    assert [13] * 3 == [counters.total(0) for counters in (one, two, successor)]
    assert [13, 0, 9] == one.totals()
    assert 9 == one.highest(2)


def test_a_part_is_a_view() -> None:
    """A part shares the numbers of the whole, with indexes that begin at 0."""
    counters = SharedCounters.of_one(4)
    counters.part(2, 2).add(1, 3)

    assert [0, 0, 0, 3] == counters.totals()
