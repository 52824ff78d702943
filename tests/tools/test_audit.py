"""The offline part of the dependency audit passes for this repository and finds mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import audit


def test_the_dependencies_are_in_order() -> None:
    """The audit finds nothing wrong with the dependencies of this repository."""
    assert [] == audit.problems()


def test_a_range_is_no_pin(tmp_path: Path) -> None:
    """A range of versions is not accepted as a pin."""
    (tmp_path / "c.txt").write_text("# why\n-c other.txt\nNumpy==2.4.6\npillow>=13\ntorch==2.13.0+cpu\n")
    pinned, wrong = audit.pins(tmp_path / "c.txt")

    assert {"numpy": "2.4.6", "torch": "2.13.0+cpu"} == pinned
    assert ["c.txt: 'pillow>=13' is not an exact version"] == wrong


def test_what_a_dependency_brings_along_is_looked_at() -> None:
    """Dependencies of dependencies must be pinned too, and installed in the pinned version."""
    found = set(audit.unpinned({"httpx"}, {"httpx": "0.0.1", "anyio": "4.16.0", "idna": "3.20"}))

    assert "httpcore is not pinned" in found
    assert any(one.startswith("httpx is pinned to 0.0.1, but") for one in found)
    assert not any(one.startswith("anyio is not") for one in found)


def test_an_import_that_nobody_declares_is_found() -> None:
    """An import that no dependency declares is found; the standard library and own packages are not dependencies."""
    source = audit.ROOT / "tools" / "audit.py"

    assert [] == list(audit.undeclared({"packaging"}, iter([source])))
    assert ["tools/audit.py imports packaging, which pyproject.toml does not declare"] == list(
        audit.undeclared({"numpy"}, iter([source]))
    )


def test_a_wheel_with_our_names_in_it_declares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing this repository's `tests` is not a dependency on a wheel that also has such a package."""
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"tests": ["careless-wheel"]})

    assert [] == list(audit.undeclared({"torch"}, iter([audit.ROOT / "tests" / "e2e" / "load.py"])))
