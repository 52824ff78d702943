"""The path of the shared golden data, and its generator of weights, for the tests that use it if it exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")


def make_weights() -> ModuleType:
    """Import the golden data's weight generator."""
    spec = importlib.util.spec_from_file_location("make_weights", SHARED / "golden" / "make_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
