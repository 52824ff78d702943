"""Triton's interpreter with a fix: triton 3.7.1 multiplies bfloat16 matrices as if their bits were integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from model.backends.triton import launch


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fix bfloat16 products, fill new buffers with NaN, and allow exp2 to reach infinity."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot)
    torch.use_deterministic_algorithms(True)
    assert torch.isnan(torch.empty(3)).all()
    with np.errstate(over="ignore"):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["few rows", "many rows"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the tiles of few rows, and again with those of many rows."""
    if request.param == "many rows":
        monkeypatch.setattr(launch, "MANY_ROWS", 0)


def _dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def _widened(x: Any) -> Any:
    if x.dtype.scalar == tl.bfloat16:
        return (x.data.astype(np.uint32) << 16).view(np.float32)
    return x.data
