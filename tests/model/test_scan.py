"""Every scan computes the recurrence of the paper for all sizes, and says clearly where it cannot run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.backends import reference, torch_scan
from model.backends.cpu import scan as cpu_scan
from model.backends.selftest import choose_verified, largest_error
from model.config import VimConfig
from model.errors import ScanError
from model.scan import ScanChoice, choose, names_on

CPU = torch.device("cpu")
NAMES = names_on(CPU)
SIZES = [(1, 1, 1, 4, 2), (2, 1, 2, 4, 3), (2, 3, 5, 6, 16), (1, 2, 17, 8, 4), (2, 2, 40, 16, 16)]


def inputs(directions: int, images: int, tokens: int, channels: int, states: int) -> list[Tensor]:
    """Seeded scan inputs in float64, with pre-activations of dt between -30 and 30."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u = normal(directions, images, tokens, channels)
    delta = normal(directions, images, tokens, channels).mul(10).clamp(-30, 30)
    A = -torch.exp(normal(directions, channels, states))
    B, C = normal(directions, images, tokens, states), normal(directions, images, tokens, states)
    D, bias = normal(directions, channels), normal(directions, channels)
    return [u, delta, A, B, C, D, normal(images, tokens, channels), bias]


def flipped(arguments: list[Tensor]) -> list[Tensor]:
    """The same problem with the tokens reversed and the directions exchanged."""
    u, delta, A, B, C, D, z, bias = arguments
    return (
        [x.flip(0, 2) for x in (u, delta)]
        + [A.flip(0)]
        + [x.flip(0, 2) for x in (B, C)]
        + [D.flip(0), z.flip(1), bias.flip(0)]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_oracle(name: str, size: tuple[int, ...]) -> None:
    """Scans agree in float32 within 1e-5 of the largest value of the float64 loop, and in float64 up to rounding."""
    exact = inputs(*size)
    expected = reference.scan(*exact)
    scan = choose(name, CPU).fn

    torch.testing.assert_close(scan(*exact), expected, rtol=1e-12, atol=1e-12)
    error = (scan(*(x.float() for x in exact)) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_reversing_tokens_and_directions_reverses_the_result(name: str) -> None:
    """The two directions are mirror images of each other."""
    arguments = inputs(2, 2, 9, 6, 4)
    scan = choose(name, CPU).fn

    torch.testing.assert_close(scan(*flipped(arguments)).flip(1), scan(*arguments))


@pytest.mark.parametrize("name", NAMES)
def test_an_impulse_only_reaches_its_own_side(name: str) -> None:
    """In direction 0 an impulse affects only its own and later tokens."""
    arguments = inputs(1, 1, 8, 4, 3)
    u = arguments[0]
    u[:, :, :] = 0
    u[:, :, 5] = 1
    scan = choose(name, CPU).fn

    forward = scan(*arguments).abs().sum(-1)[0]
    assert bool((forward[:5] == 0).all())
    assert bool((forward[5:] > 0).all())


def test_chunks_and_groups_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting time and images to limit memory does not change the result."""
    arguments = inputs(2, 5, 23, 8, 4)
    expected = torch_scan.scan(*arguments)
    monkeypatch.setattr(torch_scan, "CHUNK_ELEMENTS", 2 * 2 * 8 * 4 * 3)
    monkeypatch.setattr(torch_scan, "GROUP_ELEMENTS", 2 * 2 * 8 * 4)

    torch.testing.assert_close(torch_scan.scan(*arguments), expected, rtol=1e-12, atol=1e-12)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    """The error for an unknown name lists the known ones."""
    with pytest.raises(ScanError, match="unknown scan 'tritn'.*torch"):
        choose("tritn", CPU)


def test_auto_says_what_it_chose_and_why() -> None:
    """The choice of `auto` has the name and the reason, which `/info` shows."""
    choice = choose("auto", CPU)

    assert choice.name == "numba"
    assert "fastest" in choice.why


def wrong_scan(*arguments: Tensor) -> Tensor:
    """A scan that runs and gives wrong numbers."""
    return reference.scan(*arguments) * 1.01


def test_selftest_passes_the_scans_there_are() -> None:
    """All scans pass the self-test, with one and with two directions."""
    for bimamba in ("none", "v2"):
        config = VimConfig(bimamba=bimamba, embed_dim=24)
        for name in NAMES:
            assert name == choose_verified(name, config, CPU, torch.float32).name


def test_selftest_refuses_wrong_numbers_by_name_and_passes_them_over_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong scan is an error if it was selected by name; `auto` takes the next one and says so."""
    for module in (cpu_scan, torch_scan):
        monkeypatch.setattr(module, "scan", wrong_scan)
    config = VimConfig(embed_dim=24)

    with pytest.raises(ScanError, match="wrong numbers"):
        choose_verified("torch", config, CPU, torch.float32)
    choice = choose_verified("auto", config, CPU, torch.float32)
    assert choice.name == "reference"
    assert "numba: failed its self-test" in choice.why
    assert "torch: failed its self-test" in choice.why


def test_selftest_takes_nan_for_an_error() -> None:
    """NaN counts as an infinite error, because it compares false with everything."""
    choice = ScanChoice("nan", lambda *a: a[6] * float("nan"), "")

    assert float("inf") == largest_error(choice.fn, VimConfig(embed_dim=24), CPU, torch.float32)
