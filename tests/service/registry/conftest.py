"""The scripted device processes of the registry's tests."""

from __future__ import annotations

import pytest

from tests.service.registry.scripted_models import Fleet, scripted


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The scripted device processes of the test."""
    return scripted(monkeypatch)
