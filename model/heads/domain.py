"""Whether an image is like those that a classifier was taught with: a calibrated distance of its features.

The distance is the squared Mahalanobis distance to the nearest class mean (Lee et al., 2018, "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks"), with a pooled covariance within the
classes that is shrunk and of low rank. `service.cli.teach.domain` fits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import HeadError

Array = NDArray[np.float32]


def products(features: NDArray[Any], rows: Array) -> NDArray[Any]:
    """Features (N, D) and rows (T, D) -> their products (N, T), on one core.

    A matrix product of BLAS uses threads, and waits for them while other threads of the machine are busy.
    """
    found: NDArray[Any] = np.vecdot(features[:, None], rows[None])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """The distance of features x (D,), and the table that makes it a share.

    distance = rest |x|^2 - |directions x + offsets|^2 + min(centers x + constants). Raises HeadError if the shapes do
    not fit together or a value is not finite.
    """

    directions: Array  # (K, D)
    offsets: Array  # (K,)
    centers: Array  # (C, D)
    constants: Array  # (C,)
    rest: Array  # (1,)
    table: Array  # (Q,): ascending distances of unseen images of the taught kinds, at equally spaced shares

    def __post_init__(self) -> None:
        rank, classes, features = len(self.directions), len(self.centers), self.centers.shape[-1]
        wanted = ((rank, features), (rank,), (classes, features), (classes,), (1,), self.table.shape)
        for one, shape in zip(fields(self), wanted, strict=True):
            array = getattr(self, one.name)
            if array.shape != shape:
                raise HeadError(f"the domain's {one.name} has the shape {array.shape}; expected {shape}")
            if not np.isfinite(array).all():
                raise HeadError(f"the domain's {one.name} has NaN or infinity")
        if self.centers.ndim != 2 or self.table.ndim != 1 or not len(self.table) or (np.diff(self.table) < 0).any():
            raise HeadError("the domain's table must be ascending and its centers (C, D)")

    @classmethod
    def of(cls, arrays: Mapping[str, object]) -> Self:
        """Construct it from arrays or lists by name. Raises HeadError."""
        names = [one.name for one in fields(cls)]
        if missing := [name for name in names if name not in arrays]:
            raise HeadError(f"the domain has no {missing[0]}")
        try:
            return cls(**{name: np.asarray(arrays[name], np.float32) for name in names})
        except HeadError:
            raise
        except (TypeError, ValueError) as error:
            raise HeadError("the domain has values that are no numbers") from error

    def arrays(self) -> dict[str, Array]:
        """The arrays by name, for a file."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def features(self) -> int:
        """The number of features (D)."""
        return int(self.centers.shape[1])

    @property
    def matrix(self) -> tuple[Array, Array]:
        """(K + C, D) and (K + C,): the products with features that `in_domain` needs."""
        return np.concatenate([self.directions, self.centers]), np.concatenate([self.offsets, self.constants])

    def in_domain(self, squares: Array, products: Array) -> Array:
        """Squared lengths (N,) of features and their products (N, K + C) with `matrix` -> (N,) from 0 to 1.

        0.05 means that 5 % of unseen images of the taught kinds are at least as far from what was taught.
        """
        return self._share(self._distance(squares, products))

    def score(self, features: Array) -> Array:
        """Features (N, D) -> (N,) from 0 to 1."""
        return self._share(self.distances(features))

    def distances(self, features: NDArray[Any]) -> NDArray[Any]:
        """Features (N, D) -> distances (N,)."""
        matrix, offsets = self.matrix
        return self._distance((features * features).sum(axis=1), products(features, matrix) + offsets)

    def _distance(self, squares: NDArray[Any], products: NDArray[Any]) -> NDArray[Any]:
        rank = len(self.directions)
        main, nearest = products[:, :rank], products[:, rank:].min(axis=1)
        found: NDArray[Any] = self.rest[0] * squares - (main * main).sum(axis=1) + nearest
        return found

    def _share(self, distances: NDArray[Any]) -> Array:
        found: Array = (1 - np.searchsorted(self.table, distances) / len(self.table)).astype(np.float32)
        return found
