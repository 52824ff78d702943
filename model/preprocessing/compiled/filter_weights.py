"""Pillow's filter weights of an axis (`model.preprocessing.resize`) in the order that the compiled resize reads.

With `digits` a weight is three signed bytes, its digits in base 256, for CPUs that multiply bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.preprocessing.resize import Axis

GROUP = 4  # neighbours that one multiplication sums; also rows, columns and channels of a vector
DIGITS = 3

Ints = NDArray[np.int64]
Weights = NDArray[np.int32]

_DIGITS_OF_128 = 0x808080


class PixelWeights(NamedTuple):
    """The same number of weights for each wanted pixel, applied from the source pixel `starts` on and padded with 0."""

    starts: Ints
    weights: Weights  # (wanted, count), count a multiple of GROUP

    @property
    def per_pixel(self) -> int:
        """Number of weights of each wanted pixel."""
        return int(self.weights.shape[1])


class GroupedWeights(NamedTuple):
    """The same weights for a source that is read in groups; `groups` is the first group of each wanted pixel.

    The wanted pixels are padded to whole groups, with pixels whose weights are 0.
    """

    groups: Ints
    packed: Weights  # (wanted, count / GROUP, GROUP)
    first: int  # the source's pixels that are read, as [first, stop), whole groups
    stop: int


@lru_cache(maxsize=512)
def pixel_weights(axis: Axis, mirrored: bool = False) -> PixelWeights:
    """Return the weights of an axis, or of the mirrored axis."""
    weights = axis.weights()
    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % GROUP)))
    count = weights.shape[1]
    wanted_starts = axis.bounds()[0]
    starts = np.maximum(0, np.minimum(wanted_starts, axis.source - count))
    shifts = wanted_starts - starts
    for row in np.flatnonzero(shifts):  # pixels at the end of the source
        weights[row] = np.roll(weights[row], shifts[row])  # only zeros wrap around
    if mirrored:  # integer sums do not depend on the order
        starts, weights = axis.source - starts - count, weights[:, ::-1]
    return PixelWeights(np.ascontiguousarray(starts), weights)


@lru_cache(maxsize=512)
def grouped_weights(axis: Axis, digits: bool, mirrored: bool = False) -> GroupedWeights:
    """`pixel_weights`, shifted to the boundaries of groups."""
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
    """(wanted, groups, 4): the weights, or the first digits of four weights, then their second and third ones."""
    if digits:
        # Add 128 to every digit so that none is negative, then subtract it again by flipping each byte's highest bit.
        signed = ((weights + _DIGITS_OF_128) ^ _DIGITS_OF_128).view(np.int8)
        by_weight = signed.reshape(len(weights), -1, GROUP, 4)
        weights = np.ascontiguousarray(by_weight.swapaxes(2, 3)).view(np.int32)
    return np.ascontiguousarray(weights).reshape(len(weights), -1, GROUP)
