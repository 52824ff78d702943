"""The scan needs no more model cycles a token than when this table was written; nothing here was measured."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.model.backends.triton.test_ahead_of_time import WIDTHS, launches

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux only)"
)

SLACK = 1.05
# Triton's version -> size -> model cycles a token and warp on an H100, float16: with x, B and C from L1 at one and at
# three warps a scheduler, and from L2 at one and at three.
CYCLES = {
    "3.6": {"tiny": (335, 191, 567, 228), "small": (338, 197, 579, 221), "base": (392, 207, 627, 236)},
    "3.7": {"tiny": (337, 196, 562, 229), "small": (337, 191, 577, 220), "base": (344, 198, 580, 221)},
}


@pytest.mark.parametrize("size", WIDTHS)
def test_the_scan_takes_no_more_model_cycles_than_it_did(size: str) -> None:
    """No model figure of the scan in batches of 64 is more than 5 % above the table's."""
    import triton

    from tests.model.backends.triton.ahead import Launch
    from tests.model.backends.triton.issue_model import L1, L2, scan_loop

    version = ".".join(triton.__version__.split(".")[:2])
    if version not in CYCLES:
        pytest.skip(f"the table has no figures for Triton {version}")
    (launch,) = [found for found in launches(WIDTHS[size], torch.float16, 64, 197) if found.name == "scan_tokens"]  # type: ignore[attr-defined]
    assert isinstance(launch, Launch)
    loop = scan_loop(launch.compiled(90).cubin)
    found = [loop.cycles(warps, cached) / warps for cached in (L1, L2) for warps in (1, 3)]

    assert 1 == loop.tokens
    for before, now in zip(CYCLES[version][size], found, strict=True):
        assert SLACK * before >= now, f"{[round(cycles) for cycles in found]}"


def test_the_model_reads_the_control_code() -> None:
    """Stall 4, sets barrier 2, waits for barrier 1, as nvdisasm prints the bits."""
    from tests.model.backends.triton.issue_model import Instruction

    word = (4 | 2 << 5 | 7 << 8 | 0b10 << 11) << 105
    found = Instruction.read_from("@P0 LDG.E.64 R62, desc[UR8][R66.64]", word)

    assert (4, 2, 7, 0b10) == (found.stall, found.write, found.read, found.wait)
    assert ("LDG.E.64", "memory") == (found.name, found.unit)
    assert (38, 270) == (found.latency(38), found.latency(270))


@pytest.mark.parametrize(("warps", "cycles"), [(1, 29), (4, 32)])
def test_special_functions_of_several_warps_share_their_unit(warps: int, cycles: int) -> None:
    """One warp waits for each result; four warps are limited by the unit, which takes 8 cycles for each."""
    from tests.model.backends.triton.issue_model import Instruction, Loop

    special = Instruction("MUFU.EX2 R0, R1", stall=1, write=0, read=7, wait=0)
    user = Instruction("FADD R2, R0, R0", stall=6, write=7, read=7, wait=1)
    loop = Loop([], [special, user], [], tokens=1)

    assert loop.cycles(warps, 38) == pytest.approx(cycles, rel=0.05)
