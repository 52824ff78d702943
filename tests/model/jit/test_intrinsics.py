"""The scan treats denormal numbers as zero, and other code of the process does not."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from model.backends import reference
from model.backends.cpu import scan as cpu_scan

TINY = 1e-40  # denormal in float32


def forgotten() -> list[Tensor]:
    """Return an impulse whose state decays by 2**-138 per step, so that float32 can only hold it as a denormal."""
    ones = torch.ones(1, 1, 4, 16)
    u = torch.cat((ones[:, :, :1], 0 * ones[:, :, 1:]), dim=2)
    return [u, 6 * ones, torch.full((1, 16, 1), -16.0), ones[..., :1], ones[..., :1], torch.zeros(1, 16), ones[0],
            torch.zeros(1, 16)]  # fmt: skip


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="only x86 is slow with denormal numbers")
def test_what_is_forgotten_is_zero() -> None:
    """Denormal states become zero, because computing with them is slow for every later token."""
    arguments = forgotten()
    exact = reference.scan(*(x.double() for x in arguments))
    found = cpu_scan.scan(*arguments)

    assert 0 < float(exact[0, 1].abs().max()) < TINY
    assert 0 == int(found[0, 1:].count_nonzero())
    torch.testing.assert_close(found[0, 0].double(), exact[0, 0])


def test_the_callers_threads_keep_their_denormals() -> None:
    """After a scan every thread computes with denormals as before."""
    cpu_scan.scan(*forgotten())

    assert bool((torch.full((1 << 20,), TINY) * 1 > 0).all())
