"""Triton's interpreter with what it lacks: products of bfloat16 (3.7.1 multiplies their bits), and inline assembly.

The instructions are given the largest error that NVIDIA's PTX manual states for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton._C.libtriton import interpreter as memory
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from model.backends.triton import launch
from model.backends.triton import tiles as tiles_of
from model.backends.triton.kernels import common


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fix bfloat16 products, fill new buffers with NaN, and allow exp2 to reach infinity."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot)
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", _inline_asm)
    monkeypatch.setattr(launch, "COMPILED", True)
    torch.use_deterministic_algorithms(True)
    assert torch.isnan(torch.empty(3)).all()
    with np.errstate(over="ignore"):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["few rows", "many rows"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the tiles of few rows, and again with those of many rows."""
    if request.param == "many rows":
        monkeypatch.setattr(tiles_of, "MANY_ROWS", 0)


def _dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def _widened(x: Any) -> Any:
    if x.dtype.scalar == tl.bfloat16:
        return (x.data.astype(np.uint32) << 16).view(np.float32)
    return x.data


class _Results:
    """What the builder returns for inline assembly: one value for each output."""

    def __init__(self, kind: Any, *values: Any) -> None:
        self.values = [TensorHandle(value, kind) for value in values]

    def get_result(self, i: int) -> Any:
        return self.values[i]


def _inline_asm(builder: Any, asm: str, constraints: str, values: Any, *_: Any) -> _Results:
    x = values[0].data
    with np.errstate(over="ignore", divide="ignore"):
        if asm == common.RECIPROCAL.value:
            return _Results(tl.float32, (1 / x * (1 + 2**-23)).astype(np.float32))
        if asm == common.LOGARITHM.value:
            return _Results(tl.float32, (np.log2(x) + 2**-22).astype(np.float32))
    if asm == common.PREFETCH.value:
        return _Results(tl.int32, np.zeros(x.shape, np.int32))
    assert asm == common.FOUR.value, asm
    return _Results(tl.float32, *(_loaded(x + np.uint64(4 * i)) for i in range(4)))


def _loaded(places: Any) -> Any:
    everywhere, zero = np.ones(places.shape, bool), np.zeros(places.shape, np.float32)
    return memory.load(places, everywhere, zero, np.dtype(np.float32))
