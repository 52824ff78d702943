"""Buffers of forward passes: large enough, exclusive while borrowed, kept for reuse unless they are large."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model.backends.cpu import workspace as workspace_module
from model.backends.cpu.workspace import MAX_KEPT, Workspace


@pytest.mark.parametrize("numbers", [1, 16, 1 << 19, (1 << 19) + 1])
def test_as_many_numbers_as_wanted_can_be_written(numbers: int) -> None:
    """Buffers below, at and above the size of a huge page can be written completely."""
    with Workspace().borrow(numbers) as work:
        assert (numbers,) == work.shape
        assert float(work.fill_(1.0).sum()) == numbers


def test_memory_is_used_again_and_grows() -> None:
    """The next pass reuses a buffer that is large enough, and gets a new one otherwise."""
    workspace = Workspace()
    with workspace.borrow(1000) as first:
        pass
    with workspace.borrow(500) as second:
        assert first.data_ptr() == second.data_ptr()
    with workspace.borrow(1 << 20) as third:
        assert len(third.fill_(2.0)) == 1 << 20


def test_what_one_has_borrowed_nobody_else_gets() -> None:
    """Threads that hold buffers at the same time never share one."""
    workspace = Workspace()

    def held(value: int) -> bool:
        with workspace.borrow(100_000) as work:
            work.fill_(value)
            return bool((work == value).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(held, range(200)))


def test_much_memory_is_not_kept() -> None:
    """A buffer larger than MAX_KEPT is released after use."""
    workspace = Workspace()
    with workspace.borrow(MAX_KEPT + 1):
        pass

    assert 0 == workspace.kept


def test_a_system_without_huge_pages_works_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers can be allocated on systems without huge pages, such as those other than Linux."""
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)

    assert torch.equal(torch.full((100,), 3.0), workspace_module.allocate(100)[:100].fill_(3.0))
