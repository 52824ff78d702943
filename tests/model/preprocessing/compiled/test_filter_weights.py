"""The compiled resize's tables hold Pillow's weights, however they are packed, shifted and mirrored."""

from __future__ import annotations

import numpy as np
import pytest

from model.preprocessing.compiled.filter_weights import GROUP, Weights, grouped_weights, pixel_weights
from model.preprocessing.recipe import Preprocess
from model.preprocessing.resize import Axis

AXES = [axis for size in [(640, 480), (101, 103), (2048, 700)] for axis in Preprocess(size=80).axes(size)]


def unpacked(packed: Weights, digits: bool) -> Weights:
    """Unpack (wanted, groups, 4) to (wanted, weights)."""
    if digits:
        signed = packed.view(np.int8).reshape(*packed.shape, GROUP).astype(np.int32)  # digit, tap
        packed = signed[:, :, 0] + (signed[:, :, 1] << 8) + (signed[:, :, 2] << 16)
    return packed.reshape(len(packed), -1)


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_pixels_are_weighed_one_by_one_as_in_groups(axis: Axis, digits: bool, mirrored: bool) -> None:
    """Every source pixel has Pillow's weight, and other pixels that are read have weight 0."""
    starts, weights = axis.bounds()[0], axis.weights()
    expected = np.zeros((len(starts), axis.source + 2 * GROUP), np.int32)
    for row, start in enumerate(starts):
        used = weights[row, : axis.source - start]
        expected[row, start : start + len(used)] = used
    if mirrored:
        expected[:, : axis.source] = expected[:, axis.source - 1 :: -1][:, : axis.source]

    single, grouped = pixel_weights(axis, mirrored), grouped_weights(axis, digits, mirrored)
    in_groups = unpacked(grouped.packed, digits)
    places = [(single.starts, single.weights), (grouped.first + GROUP * grouped.groups, in_groups)]
    for firsts, table in places:
        found = np.zeros_like(expected)
        for row, line in enumerate(table[: axis.wanted]):
            found[row, firsts[row] : firsts[row] + len(line)] += line

        np.testing.assert_array_equal(found, expected)
    assert len(grouped.groups) == len(in_groups) == -(-axis.wanted // GROUP) * GROUP
    assert not in_groups[axis.wanted :].any()
    assert grouped.stop <= axis.source + GROUP - 1
