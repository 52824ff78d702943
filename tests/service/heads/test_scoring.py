"""The scores of heads: many heads in one product give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from model.heads.head import Head
from service.errors import NonFiniteOutput, UnsupportedImage
from service.heads import scoring
from service.heads.store import NamedHead
from service.jobs import Result

DIM = 8
RANDOM = np.random.default_rng(0)


def head(classes: int) -> NamedHead:
    """A head of random weights."""
    weight = RANDOM.normal(size=(classes, DIM)).astype(np.float32)
    bias = RANDOM.normal(size=classes).astype(np.float32)
    return NamedHead(f"h{classes}", Head(weight, bias, tuple(map(str, range(classes))), "0" * 12))


def features(count: int) -> list[Result]:
    """Results of a forward pass: features."""
    return [Result(RANDOM.normal(size=DIM).astype(np.float32), 0.1, 0.2, 3) for _ in range(count)]


def softmax(one: NamedHead, values: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    exponentials = np.exp(one.head.weight.astype(np.float64) @ values + one.head.bias)
    found: np.ndarray = exponentials / exponentials.sum()
    return found


def test_each_head_gives_its_own_softmax() -> None:
    """Heads of different numbers of classes share one product; each gives the softmax of its own classes."""
    heads, given = [head(2), head(10), head(3)], features(4)

    for one, outcomes in zip(heads, scoring.scored(given, heads), strict=True):
        for result, outcome in zip(given, outcomes, strict=True):
            assert isinstance(outcome, Result)
            np.testing.assert_allclose(outcome.values, softmax(one, result.values), atol=1e-6)
            assert (0.1, 0.2, 3) == (outcome.queue_s, outcome.infer_s, outcome.batch_size)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_keeps_its_place(bad: int) -> None:
    """An image with an error keeps it, and the others get the scores that are theirs."""
    one, given = head(3), [*features(3)]
    error = UnsupportedImage("no image")
    mixed = [error if i == bad else given[i] for i in range(3)]
    (outcomes,) = scoring.scored(mixed, [one])

    assert outcomes[bad] is error
    for i in {0, 1, 2} - {bad}:
        outcome = outcomes[i]
        assert isinstance(outcome, Result)
        np.testing.assert_allclose(outcome.values, softmax(one, given[i].values), atol=1e-6)


def test_only_errors() -> None:
    """If no image has features, each head has the errors."""
    errors = [UnsupportedImage("no image")]

    assert [errors, errors] == scoring.scored(errors, [head(2), head(3)])


def test_overflow_is_an_error_and_not_an_answer() -> None:
    """Scores that overflow float32 are an error; another head is not affected."""
    weight = np.full((2, DIM), np.finfo(np.float32).max)
    huge, good = NamedHead("huge", Head(weight, np.zeros(2, np.float32), ("a", "b"), "0" * 12)), head(4)
    broken, fine = scoring.scored([Result(np.full(DIM, 2, np.float32), 0, 0, 1)], [huge, good])

    assert isinstance(broken[0], NonFiniteOutput)
    assert isinstance(fine[0], Result)
