"""Pillow's coefficients of an axis (`model.preprocessing.resize`) in the order in which the compiled resize reads them.

With `digits` a weight is three signed bytes, its digits to base 256, for CPUs that multiply bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.preprocessing.resize import Axis

GROUP = 4  # neighbours that are added up together; also rows, columns and channels of a vector
DIGITS = 3

Ints = NDArray[np.int64]
Weights = NDArray[np.int32]

_DIGITS_OF_128 = 0x808080


class PixelWeights(NamedTuple):
    """Equally many weights for each wanted pixel, from `starts` on, the needless ones 0."""

    starts: Ints
    weights: Weights  # (wanted, count), count a multiple of GROUP

    @property
    def per_pixel(self) -> int:
        """How many for each wanted pixel."""
        return int(self.weights.shape[1])


class GroupedWeights(NamedTuple):
    """The same where the source is read in groups, by the number of the first group for each wanted pixel.

    The wanted pixels are filled up to whole groups too, with some that weigh nothing.
    """

    groups: Ints
    packed: Weights  # (wanted, count / GROUP, GROUP)
    first: int  # the source's pixels that are read, as [first, stop), whole groups
    stop: int


@lru_cache(maxsize=512)
def pixel_weights(axis: Axis, mirrored: bool = False) -> PixelWeights:
    """Of an axis as it is, or from its other end."""
    weights = axis.weights()
    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % GROUP)))
    count = weights.shape[1]
    wanted_starts = axis.bounds()[0]
    starts = np.maximum(0, np.minimum(wanted_starts, axis.source - count))
    shifts = wanted_starts - starts
    for row in np.flatnonzero(shifts):  # a few at the far end of the source
        weights[row] = np.roll(weights[row], shifts[row])  # what is rolled around are zeros
    if mirrored:  # sums of whole numbers do not depend on their order
        starts, weights = axis.source - starts - count, weights[:, ::-1]
    return PixelWeights(np.ascontiguousarray(starts), weights)


@lru_cache(maxsize=512)
def grouped_weights(axis: Axis, digits: bool, mirrored: bool = False) -> GroupedWeights:
    """`taps`, moved to where groups begin."""
    starts, weights = pixel_weights(axis, mirrored)
    wanted, count = weights.shape
    first = int(starts.min())
    groups, shifts = np.divmod(starts - first, GROUP)
    moved = np.zeros((wanted, count + GROUP), np.int32)
    moved[np.arange(wanted)[:, None], shifts[:, None] + np.arange(count)] = weights
    if not moved[:, count:].any():
        moved = moved[:, :count]
    stop = first + GROUP * int(groups.max()) + moved.shape[1]
    more = -wanted % GROUP
    return GroupedWeights(
        np.pad(groups, (0, more)), np.pad(_packed(moved, digits), ((0, more), (0, 0), (0, 0))), first, stop
    )


def _packed(weights: Weights, digits: bool) -> Weights:
    """(wanted, groups, 4): the weights themselves, or the first digit of four weights, their second and their third."""
    if digits:
        # 128 more in every digit, so that none is below 0; that is taken off again by turning each byte's highest bit.
        signed = ((weights + _DIGITS_OF_128) ^ _DIGITS_OF_128).view(np.int8)
        by_tap = signed.reshape(len(weights), -1, GROUP, 4)
        weights = np.ascontiguousarray(by_tap.swapaxes(2, 3)).view(np.int32)
    return np.ascontiguousarray(weights).reshape(len(weights), -1, GROUP)
