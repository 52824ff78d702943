"""The demo model's tools: figures of the report, views that can be cut again, and a student that grows and resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import VimConfig
from tools import demo_report, train_demo
from tools.demo_data import augment, cut_view
from tools.demo_recipe import Phase, Recipe
from tools.demo_student import Student, resized

CLASSES = 3


def test_the_interval_is_wilsons() -> None:
    """Against the published example 10 of 20, and at the edge where the plain interval collapses."""
    assert demo_report.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert demo_report.wilson(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_a_temperature_makes_overconfident_scores_honest() -> None:
    """Logits three times too large: the fitted temperature is three, and the calibration error falls."""
    rng = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, CLASSES, generator=rng) * 2
    classes = torch.multinomial(honest.softmax(1), 1, generator=rng)[:, 0]

    assert demo_report.fit_temperature(3 * honest, classes) == pytest.approx(3, rel=0.1)
    assert demo_report.calibration_error((3 * honest).softmax(1), classes) > 0.05
    assert demo_report.cross_fitted_error(3 * honest, classes) < 0.03


def test_neighbours_are_never_the_photograph_itself() -> None:
    """Two pairs of equal direction, one of them of two classes."""
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.1, 7.0]])
    assert demo_report.neighbour_accuracy(features, torch.tensor([0, 0, 1, 2])) == 0.5


def test_a_view_can_be_cut_again() -> None:
    """The teacher and the student see the same crop at their own sizes, now and after a restart."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 213, 3), np.uint8))
    first, again, other = (np.asarray(cut_view(image, n, 5, 64, seed=1)) for n in (2, 2, 3))
    assert (first == again).all()
    assert (first != other).any()


def test_augmentation_follows_its_generator() -> None:
    """Same seed, same pixels."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    one, two, three = (augment(images, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_growing_keeps_the_class_tokens_position() -> None:
    """Only the patches' embeddings are interpolated; a constant stays constant."""
    old, new = (VimConfig(image_size=(n, n), stride=12, embed_dim=32, depth=1, num_classes=2) for n in (40, 64))
    rows = torch.full((1, old.seq_len, 32), 2.0)
    rows[:, old.class_slots[0]] = -1.0

    grown = resized({"vim.pos_embed": rows}, old, new)["vim.pos_embed"]

    assert grown.shape == (1, new.seq_len, 32)
    wanted = torch.full_like(grown, 2.0)
    wanted[:, new.class_slots[0]] = -1.0
    torch.testing.assert_close(grown, wanted)


def test_a_checkpoint_continues_where_it_stopped(tmp_path: Path) -> None:
    """Weights, moving average and progress survive; a finished phase moves on to the next size."""
    recipe = Recipe(phases=(Phase(40, 2, 1e-3), Phase(64, 1, 1e-3)))
    state = train_demo._fresh(recipe, 0, CLASSES)
    state.epoch, state.steps = 1, 7
    state.averaged["pooled.bias"] += 1
    train_demo._save(state, tmp_path / "checkpoint.pt")

    resumed = train_demo._resume(recipe, tmp_path, CLASSES)
    assert (resumed.phase, resumed.epoch, resumed.steps) == (0, 1, 7)
    assert torch.equal(resumed.averaged["pooled.bias"], state.averaged["pooled.bias"])

    state.epoch = 2
    train_demo._save(state, tmp_path / "checkpoint.pt")
    grown = train_demo._resume(recipe, tmp_path, CLASSES)
    assert (grown.phase, grown.epoch) == (1, 0)
    assert isinstance(grown.student, Student)
    assert grown.student.vim.config.image_size == (64, 64)
