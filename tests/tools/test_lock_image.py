"""The image's lock agrees with the constraints and the program's dependencies; the index is not asked."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import lock_image
from tools.audit import CONSTRAINTS, ROOT, pins

LOCKED = lock_image.read(lock_image.LOCK.read_text())


def test_every_version_is_the_pinned_one() -> None:
    """Every locked version is the pinned one, so the image has what is tested."""
    pinned, _ = pins(*(ROOT / name for name in CONSTRAINTS))

    assert {name: pinned[name] for name in LOCKED} == {name: version for name, (version, _) in LOCKED.items()}


def test_everything_that_is_needed_is_locked_and_nothing_else() -> None:
    """The lock has exactly the packages that are needed, except torch, since --no-deps does not check that."""
    todo, closure = [Requirement(one).name for one in lock_image.roots()], set()
    while todo:
        if (name := canonicalize_name(todo.pop())) not in closure:
            closure.add(name)
            todo += [Requirement(one).name for one in lock_image.needs(name)]

    assert closure == LOCKED.keys()
    assert "torch" not in LOCKED


def test_every_package_has_a_hash() -> None:
    """Every package has one hash for a wheel for all machines, or one per machine."""
    assert all(1 <= len(hashes) <= 2 for _, hashes in LOCKED.values())
    assert 2 == len(LOCKED["numpy"][1])
    assert lock_image.LOCK.read_text().count("==") == len(LOCKED)


def test_what_is_written_can_be_read() -> None:
    """A written lock of two machines with one wheel in common can be read again."""
    text = lock_image.render(
        [{"b": ("2", "1" * 64), "a": ("1", "2" * 64)}, {"b": ("2", "3" * 64), "a": ("1", "2" * 64)}]
    )

    assert {"a": ("1", ["2" * 64]), "b": ("2", ["1" * 64, "3" * 64])} == lock_image.read(text)


def test_machines_that_need_different_packages_are_refused() -> None:
    """Machines that need different packages are refused, since one file could not serve both."""
    with pytest.raises(ValueError, match="a==1"):
        lock_image.render([{"a": ("1", "2" * 64)}, {}])
