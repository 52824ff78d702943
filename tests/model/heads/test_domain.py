"""Whether an image is like those that were taught: the definition, and what a file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import HeadError
from model.heads import domain_file
from model.heads.domain import Domain
from model.heads.head import Head

RANDOM = np.random.default_rng(0)
RANK, CLASSES, DIM = 2, 3, 5
ARRAYS: dict[str, Any] = {
    "directions": RANDOM.normal(size=(RANK, DIM)),
    "offsets": RANDOM.normal(size=RANK),
    "centers": RANDOM.normal(size=(CLASSES, DIM)),
    "constants": RANDOM.normal(size=CLASSES),
    "rest": [10.0],
    "table": np.linspace(0, 200, 101),
}
DOMAIN = Domain.of(ARRAYS)


def defined(x: np.ndarray) -> float:
    """The share by the definition, in float64."""
    main = ARRAYS["directions"] @ x + ARRAYS["offsets"]
    distance = 10 * x @ x - main @ main + min(ARRAYS["centers"] @ x + ARRAYS["constants"])
    return 1 - float((ARRAYS["table"] < distance).mean())


def test_the_score_is_the_share_of_taught_images_that_are_as_far() -> None:
    """The score of many features at once is the definition; it falls from 1 to 0 as an image moves away."""
    features = RANDOM.normal(size=(50, DIM)).astype(np.float32)
    direction = features[0] / np.linalg.norm(features[0])
    away = DOMAIN.score(np.stack([direction * length for length in np.arange(0.0, 20)]).astype(np.float32))

    np.testing.assert_allclose(DOMAIN.score(features), [defined(one) for one in features], atol=0.011)
    assert 1 == DOMAIN.score(np.zeros((1, DIM), np.float32))[0] or DOMAIN.score(np.zeros((1, DIM), np.float32))[0] > 0.9
    assert (np.diff(away) <= 0).all()
    assert 0 == away[-1]
    assert "float32" == away.dtype.name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"directions": np.zeros((RANK, DIM + 1))}, "directions has the shape"),
        ({"offsets": np.zeros(RANK + 1)}, "offsets has the shape"),
        ({"centers": np.zeros(DIM)}, "directions has the shape|centers"),
        ({"constants": [1.0]}, "constants has the shape"),
        ({"rest": [1.0, 2.0]}, "rest has the shape"),
        ({"rest": [np.nan]}, "rest has NaN"),
        ({"table": [2.0, 1.0]}, "ascending"),
        ({"table": []}, "ascending"),
        ({"table": [[1.0]]}, "ascending"),
        ({"offsets": ["a", "b"]}, "no numbers"),
        ({"offsets": {"a": 1}}, "no numbers"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], reason: str) -> None:
    """Arrays of other shapes, or with values that are no numbers, are refused with the name."""
    with pytest.raises(HeadError, match=reason):
        Domain.of(ARRAYS | change)


def test_a_missing_array_is_named() -> None:
    """Without one of the arrays there is no domain."""
    with pytest.raises(HeadError, match="no table"):
        Domain.of({name: one for name, one in ARRAYS.items() if name != "table"})


def test_the_file_beside_the_weights(tmp_path: Path) -> None:
    """What is saved is read again, to six digits."""
    domain_file.save(tmp_path / "in_domain.json", "0" * 12, DOMAIN)
    made_for, again = domain_file.read(tmp_path / "in_domain.json")

    assert "0" * 12 == made_for
    for name, array in DOMAIN.arrays().items():
        np.testing.assert_allclose(again.arrays()[name], array, rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"fingerprint": "1", "domain": 3}', '{"fingerprint": "1", "domain": {}}']
)
def test_a_damaged_file_beside_the_weights(tmp_path: Path, text: str) -> None:
    """A damaged file is an error that names it."""
    (tmp_path / "in_domain.json").write_text(text)
    with pytest.raises(HeadError, match="in_domain"):
        domain_file.read(tmp_path / "in_domain.json")


def test_a_head_keeps_its_domain() -> None:
    """A head with a domain is written and read with it; the fingerprint covers it."""
    weight, bias = np.zeros((2, DIM), np.float32), np.zeros(2, np.float32)
    head = Head(weight, bias, ("a", "b"), "0" * 12, domain=DOMAIN)
    again = Head.read(head.to_bytes())

    assert again.domain is not None
    np.testing.assert_array_equal(DOMAIN.centers, again.domain.centers)
    assert head.fingerprint == again.fingerprint != Head(weight, bias, ("a", "b"), "0" * 12).fingerprint
    with pytest.raises(HeadError, match="the domain takes 5 features, the head 6"):
        Head(np.zeros((2, 6), np.float32), bias, ("a", "b"), "0" * 12, domain=DOMAIN)
