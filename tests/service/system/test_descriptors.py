"""Connections are bounded by the file descriptors that the process may still open."""

from __future__ import annotations

import resource

import pytest

from service.system import descriptors


def test_a_reserve_is_left_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 descriptors some are open, and a reserve is kept for restarts; a few connections are always allowed."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    found = descriptors.available()

    assert 8 <= found < 256 - descriptors.RESERVE
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    assert descriptors.LEAST == descriptors.available()


def test_the_soft_limit_becomes_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit is raised to the hard limit; the usual 1,024 is for programs that call select."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    descriptors.raise_limit()

    assert [(4096, 4096)] == limits
