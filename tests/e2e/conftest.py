"""Fixtures of the tests with a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
