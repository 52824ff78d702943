"""The scores of a request's heads: one matrix product on the features of its images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from model.heads.domain import products
from model.heads.head import Head
from service.engine.engine import Answer
from service.errors import HeadMismatch, NonFiniteOutput, ServiceError
from service.heads.store import NamedHead
from service.jobs import Outcome, Result
from service.status import ModelInfo

MOST_HEADS = 64  # in one request


Scored = tuple[np.ndarray, np.ndarray | None]  # scores (N, C), and in_domain (N,)


class Stack:
    """Several heads of one model as one."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._domains = [head.domain for head in heads]
        self._counts = counts = [len(head.labels) for head in heads]
        self._starts = np.cumsum([0, *counts])[:-1]
        pairs = [(head.weight, head.bias) for head in heads]
        pairs += [domain.matrix for domain in self._domains if domain is not None]
        self._matrix = np.concatenate([matrix for matrix, _ in pairs])
        self._offsets = np.concatenate([offsets for _, offsets in pairs])
        self._ends = np.cumsum([sum(counts), *(len(matrix) for matrix, _ in pairs[len(heads) :])])

    def run(self, features: np.ndarray) -> list[Scored]:
        """Features (N, D) -> the softmax scores of each head, and whether each image is like what it was taught."""
        with np.errstate(over="ignore", invalid="ignore"):  # a result that is not finite becomes an error
            logits, *others, _ = np.split(products(features, self._matrix) + self._offsets, self._ends, axis=1)
            values = np.exp(logits - self._spread(np.maximum.reduceat(logits, self._starts, axis=1)))
            values /= self._spread(np.add.reduceat(values, self._starts, axis=1))
            squares = (features * features).sum(axis=1)
            rest = iter(others)
            in_domain = [None if one is None else one.in_domain(squares, next(rest)) for one in self._domains]
        return list(zip(np.split(values, self._starts[1:], axis=1), in_domain, strict=True))

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """One value for each head -> one for each class."""
        return np.repeat(values, self._counts, axis=1)


@functools.lru_cache(maxsize=8)
def _stack(heads: tuple[Head, ...]) -> Stack:
    return Stack(heads)


def check(named: NamedHead, model: ModelInfo) -> None:
    """Raise HeadMismatch if the head was made for another model."""
    head = named.head
    if head.model != model.fingerprint:
        raise HeadMismatch(
            f"the head {named.name!r} is for the model with fingerprint {head.model}; "
            f"{model.name} has {model.fingerprint}. Teach it again with this model"
        )
    if head.features != model.embedding_dim:
        raise HeadMismatch(
            f"the head {named.name!r} takes {head.features} features; this model has {model.embedding_dim}"
        )


def described(named: NamedHead, model: ModelInfo) -> ModelInfo:
    """The model with a head in the place of its own: NAME~HEAD. Raises HeadMismatch."""
    check(named, model)
    fingerprint = hashlib.sha256(f"{model.fingerprint} head={named.head.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(
        model,
        name=f"{model.name}~{named.name}",
        fingerprint=fingerprint[: len(model.fingerprint)],
        classes=len(named.head.labels),
        labels=named.head.labels,
        labels_source="head",
        scores="softmax",
        in_domain=named.head.domain is not None,
    )


def scored(features: Sequence[Outcome], heads: Sequence[NamedHead]) -> list[list[Outcome]]:
    """The outcomes of each head for images whose results are the features that the heads take."""
    rows = [one.values for one in features if isinstance(one, Result)]
    if not rows:
        return [list(features) for _ in heads]
    found = _stack(tuple(one.head for one in heads)).run(np.stack(rows))
    return [_outcomes(features, *one) for one in found]


def answered(answer: Answer, named: NamedHead, *, embedding_too: bool) -> Answer:
    """The answer of NAME~HEAD to the images of a request, whose results are features. Raises HeadMismatch.

    With `embedding_too` the features follow the scores.
    """
    (outcomes,) = scored(answer.outcomes, [named])
    if embedding_too:
        pairs = zip(outcomes, answer.outcomes, strict=True)
        outcomes = [_joined(scores, features) for scores, features in pairs]
    return dataclasses.replace(answer, model=described(named, answer.model), outcomes=outcomes)


def _outcomes(features: Sequence[Outcome], scores: np.ndarray, in_domain: np.ndarray | None) -> list[Outcome]:
    rows = iter(range(len(scores)))
    return [one if isinstance(one, ServiceError) else _result(one, scores, in_domain, next(rows)) for one in features]


def _result(features: Result, scores: np.ndarray, in_domain: np.ndarray | None, row: int) -> Outcome:
    values = scores[row]
    if not np.isfinite(values).all():
        return NonFiniteOutput("the scores of the head are NaN for this image")
    return dataclasses.replace(features, values=values, in_domain=None if in_domain is None else float(in_domain[row]))


def _joined(scores: Outcome, features: Outcome) -> Outcome:
    if isinstance(scores, ServiceError) or isinstance(features, ServiceError):
        return scores
    return dataclasses.replace(scores, values=np.concatenate([scores.values, features.values]))
