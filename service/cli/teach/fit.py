"""Fit a head: a regularised multinomial logistic regression on features, chosen by cross-validation.

It needs scikit-learn, of the extra `teach`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

PENALTIES = np.logspace(-4, 0, 7)  # scikit-learn's C, for standardised features: small values regularise more
TEMPERATURES = np.geomspace(0.25, 4, 33)

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A linear classifier, and what cross-validation says about it."""

    weight: Floats  # (C, D)
    bias: Floats  # (C,)
    penalty: float
    temperature: float  # weight and bias are divided by it already
    folds: int
    held_out: Floats  # (N, C): the probabilities of each picture by a classifier that was not fitted on it


def folds(labels: Labels, most: int = 5) -> list[tuple[Labels, Labels]]:
    """The pictures to fit on and those to test with, by fold: as many folds as the smallest class allows."""
    count = min(most, int(np.bincount(labels).min()))
    return list(StratifiedKFold(count, shuffle=True, random_state=0).split(np.zeros(len(labels)), labels))


def fit(features: Floats, labels: Labels) -> Fitted:
    """Fit on features (N, D) and labels (N,) from 0, each at least twice.

    Penalty and temperature are those with the least cross-validated log loss.
    """
    parts = folds(labels)
    logits = np.zeros((len(PENALTIES), len(labels), labels.max() + 1))
    for train, test in parts:
        for index, (weight, bias) in enumerate(_path(features[train], labels[train], PENALTIES)):
            logits[index, test] = features[test] @ weight.T + bias
    losses = np.array([[_log_loss(one / t, labels) for t in TEMPERATURES] for one in logits])
    best, hot = np.unravel_index(losses.argmin(), losses.shape)
    weight, bias = _path(features, labels, PENALTIES[: best + 1])[-1]
    temperature = float(TEMPERATURES[hot])
    return Fitted(
        weight=weight / temperature,
        bias=bias / temperature,
        penalty=float(PENALTIES[best]),
        temperature=temperature,
        folds=len(parts),
        held_out=np.exp(_log_softmax(logits[best] / temperature)),
    )


def _path(features: Floats, labels: Labels, penalties: Floats) -> list[tuple[Floats, Floats]]:
    """Weight and bias for each penalty, on features as they are; each fit begins with the result of the one before."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    model = LogisticRegression(max_iter=200, tol=1e-3, warm_start=True)
    found: list[tuple[Floats, Floats]] = []
    for penalty in penalties:
        with warnings.catch_warnings():  # a fit that has not converged is judged by its loss like the others
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=penalty).fit((features - mean) / scale, labels)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes have one row
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weight = weight / scale
        found.append((weight, bias - weight @ mean))
    return found


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _log_loss(logits: Floats, labels: Labels) -> float:
    return -float(_log_softmax(logits)[np.arange(len(labels)), labels].mean())
