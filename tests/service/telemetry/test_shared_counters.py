"""Numbers that several processes add up."""

from __future__ import annotations

import os

from service.telemetry.shared_counters import Tally, memory


def test_each_writes_its_row_and_reads_the_sum() -> None:
    """Two mappings of the same memory; a third goes on where the first was."""
    descriptor = memory(2, 3)
    one, two = (Tally.mapped(descriptor, 2, 3, own) for own in (0, 1))
    one.add(0, 5)
    two.add(0, 7)
    two.put(2, 9)
    successor = Tally.mapped(descriptor, 2, 3, 0)
    successor.add(0, 1)
    os.close(descriptor)

    assert [13] * 3 == [tally.total(0) for tally in (one, two, successor)]
    assert [13, 0, 9] == one.totals()
    assert 9 == one.highest(2)


def test_a_part_is_a_view() -> None:
    """Numbered from 0 again."""
    tally = Tally.of_one(4)
    tally.part(2, 2).add(1, 3)

    assert [0, 0, 0, 3] == tally.totals()
