"""Numbers that several processes count together."""

from __future__ import annotations

import os

from service.system import shared_counts


def test_each_writes_its_part_and_reads_the_sum() -> None:
    """Two processes add to the same numbers, and a successor continues the part of the first one."""
    descriptor = shared_counts.memory(2, 3)
    one, two = (shared_counts.mapped(descriptor, 2, 3, own) for own in (0, 1))
    one[0].own[0] += 5
    two[0].own[0] += 7
    two[2].own[0] = 9
    successor = shared_counts.mapped(descriptor, 2, 3, 0)
    successor[0].own[0] += 1
    os.close(descriptor)

    assert [13] * 3 == [sum(counts[0].parts) for counts in (one, two, successor)]
    assert [[6, 7], [0, 0], [0, 9]] == [list(count.parts) for count in one]


def test_a_process_that_counts_alone() -> None:
    """Without other processes the sum is the part of this one."""
    first, second = shared_counts.alone(2)
    first.own[0] -= 3

    assert (-3, -3, 0) == (first.own[0], sum(first.parts), sum(second.parts))
