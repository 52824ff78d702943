"""Views that are cut and evaluated by the teacher during the student's training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from training.data import Photos, mixture
from training.fresh_views import SIZE, FreshViews
from training.recipe import Style
from training.teacher import MIDDLE_BLOCK, WIDTH
from training.views import MAP_WIDTH, POOLED_WIDTH

MIDDLE = 7


class _Teacher(nn.Module):
    """A network of the real teacher's shape; its features are the mean colours of cells of 36 px."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = nn.ModuleList([nn.Identity() for _ in range(MIDDLE_BLOCK)] + [nn.Conv2d(3, MIDDLE, 16, 16)])
        self._fc = nn.Linear(WIDTH, 2)
        self.seen: list[Tensor] = []

    def extract_features(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self._blocks[MIDDLE_BLOCK](images)
        return nn.functional.avg_pool2d(images, SIZE // 4).repeat(1, WIDTH // 3 + 1, 1, 1)[:, :WIDTH]


def _photos() -> Photos:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (160, 200, 3), np.uint8)) for _ in range(20)]
    return Photos(images, torch.arange(20) % 2, ("dress", "hat"))


def _axes(path: Path) -> Path:
    rng = torch.Generator().manual_seed(1)
    arrays = {"pooled": torch.randn(WIDTH, POOLED_WIDTH, generator=rng), "pooled_mean": torch.zeros(WIDTH)}
    arrays |= {"map": torch.randn(WIDTH, MAP_WIDTH, generator=rng), "map_mean": torch.zeros(WIDTH)}
    save_file(arrays, path)
    return path


@pytest.fixture
def teacher() -> Any:
    """A network of the teacher's shape with random weights."""
    torch.manual_seed(2)
    return _Teacher().eval()


def test_the_teacher_sees_the_students_views(teacher: _Teacher, tmp_path: Path) -> None:
    """The inputs of teacher and student are equal except for size, blur and erased rectangles."""
    fresh = FreshViews(teacher, _photos(), _axes(tmp_path / "axes.safetensors"), Style(least=0.4, mixtures=0.5))

    seen = fresh.batch(torch.arange(12), SIZE, torch.Generator().manual_seed(3))

    assert seen.middle is not None
    shapes = [tuple(part.shape) for part in (seen.images, seen.logits, seen.pooled, seen.maps, seen.middle, seen.mixed)]
    cells = SIZE // 16
    assert shapes == [
        (12, 3, SIZE, SIZE), (12, 2), (12, POOLED_WIDTH), (12, 4, 4, MAP_WIDTH), (12, cells, cells, MIDDLE), (12,),
    ]  # fmt: skip
    differences = (_standard(seen.images) - _standard(teacher.seen[-1])).abs().amax(1).flatten(1)
    assert (differences.median(1).values < 1e-3).float().mean() > 0.5


def _standard(images: Tensor) -> Tensor:
    """Scale each channel of each image to mean 0 and deviation 1."""
    return (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)


def test_no_view_is_seen_twice_unless_the_seed_is_the_same(teacher: _Teacher, tmp_path: Path) -> None:
    """The same seed gives the same views, so a resumed run draws the same ones; another seed gives others."""
    fresh = FreshViews(teacher, _photos(), _axes(tmp_path / "axes.safetensors"), Style(least=0.4, mixtures=0.5))

    one, same, other = (fresh.batch(torch.arange(3), 64, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))

    assert torch.equal(one.images, same.images)
    assert torch.equal(one.logits, same.logits)
    assert not torch.equal(one.images, other.images)


def test_a_mixture_shows_at_least_half_of_the_first() -> None:
    """A mixture of white and black is grey everywhere or keeps both colours, and is about half white or more."""
    white, black = np.full((60, 60, 3), 255, np.uint8), np.zeros((60, 60, 3), np.uint8)
    rng = np.random.default_rng(4)
    for _ in range(20):
        mixed = mixture(white, black, rng, 0.1)
        assert 0.48 < mixed.mean() / 255 < 0.92
        assert len(np.unique(mixed)) in (1, 2)
    assert (white == 255).all()
