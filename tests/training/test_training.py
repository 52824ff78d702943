"""The demo model's training: figures of the report, reproducible views, and a student that grows and resumes."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import model
from model.config import VimConfig
from training import learning, report, views
from training import state as states
from training.curve import write_curve
from training.data import Photos, augment
from training.recipe import Phase, Recipe
from training.student import Student, resized
from training.teacher import SIZE
from training.train import write_model

CLASSES = 3


def test_the_interval_is_wilsons() -> None:
    """The interval equals the published example 10 of 20, and has a width at the edge, 5 of 5."""
    assert report.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert report.wilson(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_a_temperature_makes_overconfident_scores_honest() -> None:
    """For logits three times too large the fitted temperature is three, and the calibration error falls."""
    rng = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, CLASSES, generator=rng) * 2
    classes = torch.multinomial(honest.softmax(1), 1, generator=rng)[:, 0]

    assert report.fit_temperature(3 * honest, classes) == pytest.approx(3, rel=0.1)
    assert report.calibration_error((3 * honest).softmax(1), classes) > 0.05
    assert report.cross_fitted_error(3 * honest, classes) < 0.03


def test_neighbours_are_never_the_photograph_itself() -> None:
    """Of two pairs with equal direction, one with different classes, half of the neighbours are right."""
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.1, 7.0]])
    assert report.neighbour_accuracy(features, torch.tensor([0, 0, 1, 2])) == 0.5


def test_views_can_be_cut_again() -> None:
    """The same number gives the same pixels; every third view mixes two photographs."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(np.full((160, 213, 3), level, np.uint8)) for level in rng.integers(0, 256, 6)]
    photos = Photos(images, torch.zeros(6, dtype=torch.long), ("dress",))

    first, again, other, mixed = (views.cut(photos, number, seed=1) for number in (1, 1, 3, 2))

    assert (first == again).all()
    assert first.shape == other.shape == (6, SIZE, SIZE, 3)
    levels = {image.getpixel((0, 0)) for image in images}
    assert all(tuple(view[0, 0].tolist()) in levels for view in first)
    assert any(len(np.unique(view)) > 1 or tuple(view[0, 0].tolist()) not in levels for view in mixed)


def test_wide_views_show_most_of_one_photograph() -> None:
    """Every wide view of a half-white photograph shows both halves, and none is a mixture."""
    pixels = np.zeros((160, 200, 3), np.uint8)
    pixels[:, :100] = 255
    photos = Photos([Image.fromarray(pixels)] * 4, torch.zeros(4, dtype=torch.long), ("dress",))

    view = views.cut(photos, 17, seed=1, wide=True)

    assert (4, views.WIDE, views.WIDE, 3) == view.shape
    assert all((0.1 < half < 0.9) for half in (view > 127).mean((1, 2, 3)))


def test_the_axes_of_the_first_view_are_kept_for_the_others(tmp_path: Path) -> None:
    """The axes are written once and read later, and the projections have unit variance on average."""
    features = torch.randn(40, 4, 4, 300, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 301)
    axes = views.principal_axes(tmp_path / "axes.safetensors", features)

    again = views.principal_axes(tmp_path / "axes.safetensors", features + 1)

    assert all(torch.equal(axes[name], again[name]) for name in axes)
    cells = (features.flatten(0, 2) - axes["map_mean"]) @ axes["map"]
    assert cells.square().mean().item() == pytest.approx(1, rel=0.01)


def test_the_curve_shows_every_epoch(tmp_path: Path) -> None:
    """The curve has every epoch's loss, and the accuracy of the epochs in which it was measured."""
    rows = ["0,48,1,9.0,,3.1", "0,48,2,8.0,0.5,3.0", "1,64,1,7.5,,6.0", "1,64,2,7.0,0.6,6.1"]
    log = tmp_path / "training_log.csv"
    log.write_text("\n".join(["phase,size,epoch,loss,validation_top1,seconds", *rows]) + "\n")

    write_curve(log, tmp_path / "curve.svg")

    drawn = ElementTree.parse(tmp_path / "curve.svg").findall("{http://www.w3.org/2000/svg}polyline")
    assert [4, 2] == [len(line.get("points", "").split()) for line in drawn]


def test_augmentation_follows_its_generator() -> None:
    """The same seed gives the same augmented pixels, and another seed gives others."""
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
    """Weights, moving average and progress are restored; a finished phase continues with the next size."""
    recipe = Recipe(phases=(Phase(40, 2, 1e-3), Phase(64, 1, 1e-3)))
    state = states.fresh(recipe, 0, CLASSES)
    state.epoch, state.steps = 1, 7
    state.averaged["pooled.bias"] += 1
    states.save(state, tmp_path / "checkpoint.pt")

    resumed = states.resume(recipe, tmp_path, CLASSES)
    assert (resumed.phase, resumed.epoch, resumed.steps) == (0, 1, 7)
    assert torch.equal(resumed.averaged["pooled.bias"], state.averaged["pooled.bias"])

    state.epoch = 2
    states.save(state, tmp_path / "checkpoint.pt")
    grown = states.resume(recipe, tmp_path, CLASSES)
    assert (grown.phase, grown.epoch) == (1, 0)
    assert isinstance(grown.student, Student)
    assert grown.student.vim.config.image_size == (64, 64)


def test_a_model_directory_can_start_a_late_phase(tmp_path: Path) -> None:
    """The directory's weights are resized to that phase's size; the heads for the teacher are new."""
    phases = (Phase(40, 2, 1e-3), Phase(64, 1, 1e-3))
    recipe = Recipe(phases=phases, entry=1, width=32, depth=2, served=48)
    before = states.fresh(recipe, 0, CLASSES)
    before.averaged["vim.norm_f.weight"] += 1
    write_model(recipe, before, tmp_path, ("dress", "hat", "shoes"))

    state = states.resume(recipe, tmp_path / "cache", CLASSES, start=tmp_path)

    assert (1, 0) == (state.phase, state.epoch)
    assert (64, 64) == state.student.vim.config.image_size
    torch.testing.assert_close(state.averaged["vim.norm_f.weight"], before.averaged["vim.norm_f.weight"])
    assert torch.equal(state.student.vim.norm_f.weight, state.averaged["vim.norm_f.weight"])


def test_the_rate_warms_up_and_falls() -> None:
    """The rate rises from zero to the peak, and falls to a hundredth of it."""
    phase = Phase(48, 10, peak=1e-2, warmup=2.0)
    assert phase.rate(0.0) < phase.rate(1.0) < phase.rate(2.0) == 1e-2
    assert phase.rate(9.99) == pytest.approx(1e-4, rel=0.02)


def test_the_rate_can_stay_at_its_peak() -> None:
    """Without the cosine the rate stays at the peak after the warm-up."""
    phase = Phase(48, 10, peak=1e-2, warmup=2.0, fall=False)
    assert phase.rate(0.5) < phase.rate(2.0) == phase.rate(9.99) == 1e-2


def test_similarity_is_the_cosine_of_every_pair() -> None:
    """The similarity of features is their cosine, whatever their lengths."""
    similarity = learning.cosine_similarities(torch.tensor([[2.0, 0.0], [0.0, 0.1], [3.0, 3.0]]))
    torch.testing.assert_close(similarity, torch.tensor([[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5, 0.5**0.5, 1]]))


def test_the_student_computes_what_the_model_does() -> None:
    """The training layers, with products in bfloat16, give the model's own results up to rounding."""
    torch.manual_seed(4)
    student = Student(Recipe(width=32, depth=4).config(48, CLASSES), 6, 5, 7)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        logits, pooled, cells, features, middle = student(images, 3, 4)
        expected, served = student.vim(images), student.vim.forward_features(images)

    assert ((2, CLASSES), (2, 6), (2, 3, 3, 5)) == (logits.shape, pooled.shape, cells.shape)
    assert middle is not None
    assert middle.shape == (2, 4, 4, 7)
    torch.testing.assert_close(features, served, rtol=0.05, atol=0.02 * served.abs().max().item())
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


def test_what_ships_is_grown_to_the_size_at_which_it_is_served(tmp_path: Path) -> None:
    """The written model has the trained weights, the resampled position embedding and the crop ratio, and loads."""
    recipe = Recipe(phases=(Phase(48, 1, 1e-3),), width=32, depth=2, served=64, crop_ratio=0.9)
    state = states.fresh(recipe, 0, CLASSES)

    write_model(recipe, state, tmp_path, ("dress", "hat", "shoes"))

    network = model.load(tmp_path, device="cpu")
    assert (64, 64) == network.config.image_size
    assert 0.9 == network.preprocess.crop_ratio
    torch.testing.assert_close(network.head.weight, state.averaged["vim.head.weight"])
