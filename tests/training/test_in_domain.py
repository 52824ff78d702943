"""`in_domain` of the demo model: the generated pictures, and the file that is shipped."""

from __future__ import annotations

import numpy as np

from model.loading.load import load
from model.runtime.runner import Runner
from training.background import background
from training.in_domain import features


def test_generated_pictures_differ_and_are_the_same_again() -> None:
    """A number always gives the same picture, and every number another one."""
    pictures = [background(number, 32) for number in range(20)]

    assert all((32, 32, 3) == one.shape and np.uint8 == one.dtype for one in pictures)
    assert 20 == len({one.tobytes() for one in pictures})
    assert background(7, 32).tobytes() == pictures[7].tobytes()


def test_the_shipped_file_belongs_to_the_shipped_weights() -> None:
    """The demo model has a domain, and generated pictures that were not used for it are outside of it."""
    vim = load("demo", device="cpu", preprocess="friendly")
    size = vim.config.image_size[0]
    unseen = [background(number, size) for number in range(1000, 1016)]

    assert vim.domain is not None
    assert 0.8 < (vim.domain.score(features(Runner(vim), unseen).astype(np.float32)) < 0.05).mean()
