"""The fit of a head and of its domain: on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from service.cli.teach import domain
from service.cli.teach.fit import Floats, Labels, fit, folds

DIM = 12


def blobs(classes: int, each: int, seed: int = 0, spread: float = 3.0) -> tuple[Floats, Labels]:
    """Normal features around a mean for each class; the means are the same for every seed."""
    means = spread * np.random.default_rng(99).normal(size=(classes, DIM))
    labels = np.repeat(np.arange(classes), each)
    return means[labels] + np.random.default_rng(seed).normal(size=(len(labels), DIM)), labels


@pytest.mark.parametrize(("classes", "each"), [(2, 2), (2, 5), (3, 5), (10, 20)])
def test_separate_classes_are_learned(classes: int, each: int) -> None:
    """A head for classes that lie apart classifies unseen features of them."""
    fitted = fit(*blobs(classes, each))
    features, labels = blobs(classes, 50, seed=1)

    assert (classes, DIM) == fitted.weight.shape
    assert ((features @ fitted.weight.T + fitted.bias).argmax(axis=1) == labels).mean() > 0.95
    np.testing.assert_allclose(fitted.held_out.sum(axis=1), 1)
    assert min(5, each) == fitted.folds


def test_held_out_probabilities_are_honest() -> None:
    """Labels without any relation to the features are not predicted: nothing of a picture leaks into its own test."""
    features, _ = blobs(1, 200)
    labels = np.random.default_rng(5).permutation(np.arange(200) % 2)
    fitted = fit(features, labels)

    assert 0.35 < (fitted.held_out.argmax(axis=1) == labels).mean() < 0.65
    assert fitted.held_out.max() < 0.95


def test_probabilities_of_two_classes_agree_with_their_log_odds() -> None:
    """With two classes the two rows are opposite, as scikit-learn's single row says."""
    fitted = fit(*blobs(2, 20))

    np.testing.assert_allclose(fitted.weight[0], -fitted.weight[1])
    np.testing.assert_allclose(fitted.bias[0], -fitted.bias[1])


@pytest.mark.parametrize("each", [5, 20, 200])
def test_five_percent_of_unseen_pictures_of_the_classes_score_below_five_percent(each: int) -> None:
    """The table is calibrated for pictures that were not fitted; others score near 0."""
    fitted = domain.fit(*blobs(4, each))
    unseen, _ = blobs(4, 2000, seed=7)
    scores = fitted.score(unseen.astype(np.float32))
    others = fitted.score(np.float32(8) * np.random.default_rng(3).normal(size=(500, DIM)).astype(np.float32))

    assert 0.005 < (scores < 0.05).mean() < (0.12 if each > 5 else 0.3)
    assert (others < 0.05).mean() > 0.9


def test_a_background_counts_against() -> None:
    """Features like the background's score lower with it than without."""
    features, labels = blobs(3, 100, spread=0.5)
    background = blobs(3, 100, seed=1, spread=0.5)[0] + 1.5
    unseen = (blobs(3, 100, seed=2, spread=0.5)[0] + 0.75).astype(np.float32)
    with_it, without = domain.fit(features, labels, background), domain.fit(features, labels)

    assert with_it.score(unseen).mean() < without.score(unseen).mean()


def test_recalibration_changes_the_table_only() -> None:
    """After recalibration 5 % of the given features score below 0.05."""
    fitted = domain.fit(*blobs(3, 50))
    wider, _ = blobs(3, 400, seed=8)
    again = domain.recalibrated(fitted, 1.3 * wider)

    np.testing.assert_array_equal(fitted.centers, again.centers)
    assert 0.03 < (again.score((1.3 * wider).astype(np.float32)) < 0.05).mean() < 0.07


@pytest.mark.parametrize(("dims", "classes"), [(768, 2), (768, 5), (384, 2), (160, 10)])
def test_a_class_takes_at_most_64_kb(dims: int, classes: int) -> None:
    """The weights and the domain of a head take at most 64 kB a class, also for wide features; the table is small."""
    features = np.random.default_rng(0).normal(size=(classes * 60, dims))
    arrays = domain.fit(features, np.repeat(np.arange(classes), 60)).arrays()
    table = arrays.pop("table")

    assert 4 * classes * dims + sum(one.nbytes for one in arrays.values()) <= classes * 64 * 1024
    assert 1024 == table.nbytes


def test_as_many_folds_as_the_smallest_class_allows() -> None:
    """Every picture is tested once, and a class of two pictures gives two folds."""
    labels = np.array([0] * 10 + [1] * 2)
    parts = folds(labels)

    assert 2 == len(parts)
    assert list(range(12)) == sorted(np.concatenate([test for _, test in parts]).tolist())
