"""Short work runs on the event loop, for a limited time per iteration, so that other tasks are not delayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.engine.decode_pool import InlineBudget

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that advances only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The current time."""
        return self.now

    def work(self, name: str, done: list[str], seconds: float = 0.4) -> Callable[[], str]:
        """Work that takes this many seconds."""

        def take() -> str:
            self.now += seconds
            done.append(name)
            return name

        return take


async def test_work_is_done_at_once_while_the_turn_has_time() -> None:
    """Work runs directly in the call while the iteration has time left."""
    budget, clock, done = InlineBudget(1.0), Clock(), list[str]()
    asyncio.get_running_loop().call_soon(done.append, "another")

    assert "mine" == await budget.run(clock.work("mine", done))
    assert ["mine"] == done


async def test_between_two_shares_the_loop_does_what_else_there_is() -> None:
    """Work stops after its share of an iteration, and other tasks run before it continues, in order."""
    clock, done = Clock(), list[str]()
    budget = InlineBudget(0.5, clock)
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        done.append("|")
        if turn < 8:
            asyncio.get_running_loop().call_soon(count)

    asyncio.get_running_loop().call_soon(count)
    await asyncio.gather(*(budget.run(clock.work(str(number), done)) for number in range(10)))
    shares = [len(share) for share in "".join(done).split("|")]

    assert [str(number) for number in range(10)] == [one for one in done if one != "|"]
    assert 2 >= max(shares)


async def test_whoever_comes_later_does_not_overtake() -> None:
    """Work that comes later runs after the work that waits, even if the iteration has time left."""
    clock, done = Clock(), list[str]()
    budget = InlineBudget(0.1, clock)
    first = asyncio.gather(*(budget.run(clock.work(name, done)) for name in "abc"))
    await asyncio.sleep(0)
    assert budget.waiting
    await budget.run(clock.work("late", done))
    await first

    assert ["a", "b", "c", "late"] == done
    assert not budget.waiting


async def test_an_error_is_its_callers() -> None:
    """An error is raised in its caller, in this or a later iteration, and other work still runs."""
    clock, done = Clock(), list[str]()
    budget = InlineBudget(0.1, clock)

    def fail() -> str:
        clock.now += 1
        raise ValueError("mine")

    found = await asyncio.gather(
        *(budget.run(work) for work in (fail, fail, clock.work("after", done))), return_exceptions=True
    )

    assert ["ValueError", "ValueError", "str"] == [type(one).__name__ for one in found]


async def test_nothing_is_done_for_who_has_left() -> None:
    """Work whose caller is cancelled while it waits never runs."""
    clock, done = Clock(), list[str]()
    budget = InlineBudget(0.1, clock)
    tasks = [asyncio.create_task(budget.run(clock.work(name, done))) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert ["a", "c"] == done
