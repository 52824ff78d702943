"""The training scan and its gradient equal a plain float64 loop differentiated by torch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.scan_grad import scan_backward, scan_forward

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def _plain_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    step = F.softplus(delta + delta_bias[:, None, None])
    total = torch.zeros_like(z)
    for s in range(u.shape[0]):
        h = torch.zeros(u.shape[1], u.shape[3], A.shape[2], dtype=u.dtype)
        y: list[Tensor] = [h] * u.shape[2]
        for t in range(u.shape[2]) if s == 0 else reversed(range(u.shape[2])):
            decay = torch.exp(step[s, :, t, :, None] * A[s])
            h = decay * h + (step[s, :, t] * u[s, :, t])[..., None] * B[s, :, t, None]
            y[t] = (h * C[s, :, t, None]).sum(-1) + D[s] * u[s, :, t]
        total = total + torch.stack(y, 1)
    return F.silu(z) * total


def _inputs(directions: int, batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    make = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64)

    return [
        normal(directions, batch, length, channels),
        3 * normal(directions, batch, length, channels),
        -torch.exp(normal(directions, channels, states)),
        normal(directions, batch, length, states),
        normal(directions, batch, length, states),
        normal(directions, channels),
        3 * normal(batch, length, channels),
        normal(directions, channels) - 1,
    ]


def _assert_close(name: str, got: Tensor, want: Tensor) -> None:
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error < 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("directions", "batch", "length", "channels", "states"), [(2, 3, 11, 32, 16), (1, 2, 7, 48, 8), (2, 1, 2, 16, 1)]
)
def test_output_and_gradients_equal_a_float64_loop(
    directions: int, batch: int, length: int, channels: int, states: int
) -> None:
    """One and two directions agree, at odd lengths and at the shortest sequence on which A has an effect."""
    exact = [x.requires_grad_() for x in _inputs(directions, batch, length, channels, states)]
    single = [x.detach().float() for x in exact]
    weights = torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    want = _plain_scan(*exact)
    summed, got = scan_forward(*single)
    grads = scan_backward(*(*single, summed, weights.float()))

    _assert_close("y", got, want)
    for name, ours, theirs in zip(NAMES, grads, torch.autograd.grad((want * weights).sum(), exact), strict=True):
        _assert_close(name, ours, theirs)


def test_channels_that_do_not_fill_the_lanes_are_refused() -> None:
    """Channels that are not a multiple of 16 are refused, because the kernels would read past the end."""
    with pytest.raises(ValueError, match="multiple of 16 channels, got 24"):
        scan_forward(*(x.float() for x in _inputs(1, 1, 3, 24, 2)))


def test_extreme_steps_and_gates_stay_finite() -> None:
    """Results and gradients are finite for steps and gates far outside the polynomials' range."""
    inputs = [x.float() for x in _inputs(2, 1, 5, 16, 8)]
    inputs[1] *= 40
    inputs[6] *= 100

    summed, y = scan_forward(*inputs)
    grads = scan_backward(*(*inputs, summed, torch.ones_like(y)))

    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
