"""A loaded model that is changed gives the results of its current weights and dtype, with every scan."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import Vim, load
from model.backends.reference import scan as reference
from model.scan import names_on
from tests.model.loading.checkpoints import TINY, state

SCANS = names_on(torch.device("cpu"))
SIDE = TINY.image_size[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of weights."""
    torch.save(state(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture(params=SCANS)
def vim(request: pytest.FixtureRequest, path: Path) -> Vim:
    """A loaded model, which has answered once."""
    vim = load(path, config=TINY, device="cpu", scan=request.param)
    answers(vim)
    return vim


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Two normalised images."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).to(dtype)


@torch.inference_mode()
def answers(vim: Vim) -> Tensor:
    """The logits, in float64."""
    logits: Tensor = vim(images(vim.patch_embed.proj.weight.dtype)).double()
    return logits


def expected(weights: dict[str, Tensor]) -> Tensor:
    """The logits by the reference scan in float64."""
    fresh = Vim(TINY, reference)
    fresh.load_state_dict(weights)
    return answers(fresh.double())


def assert_close(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    """The largest difference, relative to the largest value."""
    assert float((found - wanted).abs().max() / wanted.abs().max()) < relative


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_later_are_used(vim: Vim, assign: bool) -> None:
    """After `load_state_dict` the new weights are used, although fused layers have copies of the old ones."""
    vim.load_state_dict(state(seed=1), assign=assign)

    assert_close(answers(vim), expected(state(seed=1)))


def test_weights_that_are_changed_in_place_are_used(vim: Vim) -> None:
    """Weights that are changed in place, as by an optimizer, are used."""
    with torch.no_grad():
        vim.layers[1].mixer.out_proj.weight.mul_(-3)  # type: ignore[union-attr,operator]

    assert_close(answers(vim), expected(dict(vim.state_dict())))
    assert vim.scan_choice is not None
    assert "composed" in vim.scan_choice.path


def test_a_model_in_double_precision_is_exact(vim: Vim) -> None:
    """`.double()` computes in float64."""
    assert_close(answers(vim.double()), expected(state()), relative=1e-12)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_model_in_half_precision_is_near(vim: Vim, dtype: torch.dtype, relative: float) -> None:
    """`.to(dtype)` keeps the parameters of recurrence and norms in float32."""
    vim.to(dtype)

    assert torch.float32 == vim.layers[0].mixer.A_log.dtype  # type: ignore[union-attr]
    assert_close(answers(vim), expected(state()), relative)


def test_a_conversion_that_changes_nothing_keeps_the_fused_layers(path: Path) -> None:
    """`.to("cpu")` and `.float()` on a float32 model on the CPU keep the fused layers."""
    vim = load(path, config=TINY, device="cpu")
    before = vim.scan_choice
    vim.to("cpu").float().eval()

    assert vim.encoder is not None
    assert before == vim.scan_choice


def test_every_parameter_of_an_unfrozen_model_gets_its_gradient(vim: Vim) -> None:
    """The gradients of all parameters equal those of the reference scan."""
    other = Vim(TINY, reference)
    other.load_state_dict(state())
    for one in (vim, other):
        one.requires_grad_(True)
        one(images()).square().sum().backward()
    wanted = dict(other.named_parameters())

    for name, parameter in vim.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-4)


def test_one_layer_may_be_trained(vim: Vim) -> None:
    """If one layer is trained, only its parameters get gradients, and the model then uses the new weights."""
    layer = vim.layers[1].requires_grad_(True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    vim(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(parameter.grad is None for parameter in vim.layers[0].parameters())
    optimizer.step()
    weights = copy.deepcopy(dict(vim.state_dict()))

    assert_close(answers(vim), expected(weights))


def test_the_gradient_of_an_image_agrees_with_finite_differences(vim: Vim) -> None:
    """The gradient of an image agrees with finite differences, in float64 along a random direction."""
    vim.double()
    image = images(torch.float64).requires_grad_(True)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(vim(image)[0, 0], image)
    with torch.no_grad():
        step = 1e-6
        above, below = (vim(image + sign * step * direction)[0, 0] for sign in (1, -1))

    assert float((gradient * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-5)


def test_a_frozen_model_stays_fused_without_inference_mode(path: Path) -> None:
    """If no gradient is required the fused layers run, whether or not gradients are enabled."""
    vim = load(path, config=TINY, device="cpu")
    vim(images())

    assert vim.encoder is not None
