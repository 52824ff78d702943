"""Rows that are not finite: alone in their batch, and computed again in float32 where the model runs in float16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.runtime.cuda.runner import CudaRunner
from model.runtime.pixel_model import PARTS, PixelModel
from tests.model.runtime.cuda.streams import Shuffled
from tests.model.runtime.cuda.test_cuda_runner import SEEDS, arena, expected_rows, model_with, warm

BLACK = 4


def blackout(monkeypatch: pytest.MonkeyPatch, dtypes: tuple[torch.dtype, ...]) -> np.ndarray:
    """Models of these dtypes give NaN for a black image; returns slots of which one is black."""
    honest, slots = PixelModel.tokens, arena()

    def poisoned(self: PixelModel, pixels: Tensor) -> Tensor:
        tokens = honest(self, pixels)
        black = pixels.amax((1, 2, 3))[:, None, None] == 0
        return torch.where(black, float("nan"), tokens) if tokens.dtype in dtypes else tokens

    monkeypatch.setattr(PixelModel, "tokens", poisoned)
    slots[BLACK] = 0
    return slots


def test_a_row_that_is_not_finite_is_that_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is not finite is marked on the device, and other rows are unaffected."""
    runner = warm(Shuffled(), blackout(monkeypatch, (torch.float32,)))
    rows = runner.collect(runner.submit([3, BLACK, 5], PARTS))

    assert [True, False, True] == rows.finite.tolist()
    assert rows.cls is not None
    assert np.isfinite(rows.cls[[0, 2]]).all()
    assert 0 == rows.widened


def chosen_runner(slots: np.ndarray, accelerator: Shuffled) -> CudaRunner:
    """Return a runner that has chosen float16, after its start-up."""
    runner = CudaRunner(model_with(), accelerator, max_batch=6, choose_dtype=True)
    runner.verify_scan("torch")
    runner.attach(slots)
    list(runner.warm_up())
    assert torch.float16 == runner.dtype
    return runner


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_that_overflows_float16_is_computed_again(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A row that overflows float16 gets float32's numbers, also with another batch in flight; others do not change."""
    runner = chosen_runner(arena(), Shuffled(seed))
    slots = blackout(monkeypatch, (torch.float16,))
    runner.attach(slots)
    runner.drop_graphs()
    first, second = runner.submit([3, BLACK, 5], PARTS), runner.submit([1, 2], ["cls"])
    rows, others = runner.collect(first), runner.collect(second)

    assert rows.finite.all()
    assert others.finite.all()
    assert (1, 0) == (rows.widened, others.widened)
    expected = expected_rows(slots, [3, BLACK, 5])
    for part in PARTS:
        found, wanted = getattr(rows, part), getattr(expected, part)
        np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-2 * np.abs(wanted).max())


def test_without_memory_for_it_the_row_stays_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for float32 the row stays marked, and the other rows are answered."""
    accelerator = Shuffled()
    runner = chosen_runner(arena(), accelerator)
    slots = blackout(monkeypatch, (torch.float16,))
    runner.attach(slots)
    runner.drop_graphs()
    batch = runner.submit([3, BLACK], PARTS)

    def full(*shape: int, dtype: torch.dtype) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(accelerator, "device_buffer", full)
    rows = runner.collect(batch)

    assert [True, False] == rows.finite.tolist()
    assert 0 == rows.widened
