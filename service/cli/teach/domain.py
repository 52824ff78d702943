"""Fit a `Domain`: whether an image is like those that a head was taught with.

The covariance within the classes is shrunk towards a multiple of the identity, and its smaller variances are replaced
by their mean. The table is of distances of pictures that were held out, so that 5 % of unseen pictures of the taught
kinds score below 0.05.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from model.heads.domain import Array, Domain
from service.cli.teach.fit import Floats, Labels, folds

PRIOR = 0.3  # weight of the isotropic covariance: this many pictures for each feature
RANK = 64  # directions with a variance of their own
CLASS_BYTES = 64 * 1024  # of a file, for each class at most
BACKGROUND = 2.0  # weight of the linear score against background pictures
FEW = 40  # pictures; the shares of fewer are too coarse
QUANTILES = 256
MOST_FOLDS = 10


def fit(features: Floats, labels: Labels, background: Floats | None = None) -> Domain:
    """Fit on features (N, D) and labels (N,) from 0, each at least twice.

    `background` (M, D) are features of pictures of nothing in particular; the distance then grows towards them.
    """
    held = np.empty(len(labels))
    for train, test in folds(labels, MOST_FOLDS):
        held[test] = _fit(features[train], labels[train], background).distances(features[test])
    return dataclasses.replace(_fit(features, labels, background), table=_table(held))


def recalibrated(domain: Domain, unseen: Floats) -> Domain:
    """The same with a table of unseen pictures (M, D) of the taught kinds.

    A model needs this for its own training pictures, whose features it has learned.
    """
    return dataclasses.replace(domain, table=_table(domain.distances(unseen)))


def _fit(features: Floats, labels: Labels, background: Floats | None) -> Domain:
    means = np.stack([features[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])
    rank = min(RANK, len(means) * (CLASS_BYTES // (4 * features.shape[1]) - 2))  # each class has two rows more
    directions, rest = _whitening(features - means[labels], len(features) - len(means), max(1, rank))
    middle = means.mean(axis=0)
    moved = means - middle
    weighted = rest * moved - moved @ directions.T @ directions
    linear, constants = -2 * weighted, (weighted * moved).sum(axis=1)
    if background is not None:
        linear = linear - 2 * BACKGROUND * _discriminant(features, background)
    arrays = {
        "directions": directions,
        "offsets": -directions @ middle,
        "centers": linear - 2 * rest * middle,
        "constants": constants - linear @ middle + rest * middle @ middle,
        "rest": [rest],
        "table": [0.0],
    }
    return Domain.of(arrays)


def _whitening(within: Floats, freedom: int, rank: int) -> tuple[Floats, float]:
    """Deviations from the class means (N, D) -> U (K, D) and r, where r I - U'U is the inverse of the covariance.

    K is at most `rank`.
    """
    dims, freedom = within.shape[1], max(freedom, 1)
    variances, basis = np.linalg.eigh(within.T @ within / freedom)
    share = PRIOR * dims / (PRIOR * dims + freedom)
    variances = (1 - share) * variances[::-1] + share * variances.mean()
    rank = min(rank, freedom, dims - 1)
    rest = 1 / max(float(variances[rank:].mean()), 1e-12)
    gains = np.sqrt(np.maximum(rest - 1 / variances[:rank], 0))
    return gains[:, None] * basis[:, ::-1][:, :rank].T, rest


def _discriminant(features: Floats, background: Floats) -> Floats:
    """Fisher's direction (D,) from background pictures to taught pictures, with a shrunk covariance."""
    pooled = (np.cov(features.T) + np.cov(background.T)) / 2
    dims = len(pooled)
    pooled = 0.9 * pooled + 0.1 * np.trace(pooled) / dims * np.eye(dims)
    found: Floats = np.linalg.solve(pooled, features.mean(axis=0) - background.mean(axis=0))
    return found


def _table(held: Floats) -> Array:
    """Distances at equally spaced shares; of few pictures by Student's t, whose tail exceeds what was seen."""
    count = len(held)
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    if count < FEW:
        spread = held.std(ddof=1) * np.sqrt(1 + 1 / count)
        found = held.mean() + stats.t.ppf(shares, count - 1) * spread
    else:
        found = np.quantile(held, np.minimum(shares * (count + 1) / count, 1))
    return np.asarray(found, np.float32)
