"""A repeated SIGTERM is the same wish; a second SIGINT, or a late SIGTERM, ends the process at once."""

from __future__ import annotations

import signal

from service.server.signals import SAME_WISH_S, Signals


class Clock:
    """Time as the test sets it."""

    now = 100.0

    def __call__(self) -> float:
        """The present time."""
        return self.now


def test_sigterm_twice_within_a_moment_is_one_wish() -> None:
    """GNU `timeout`, or a preStop hook before the kubelet, sends it twice."""
    signals = Signals(Clock())

    assert [False] * 3 == [signals.repeated(signal.SIGTERM) for _ in range(3)]


def test_a_second_ctrl_c_ends_at_once() -> None:
    """A person who presses Ctrl-C again does not want to wait."""
    signals = Signals(Clock())

    assert [False, True] == [signals.repeated(signal.SIGINT) for _ in range(2)]


def test_a_late_sigterm_ends_at_once() -> None:
    """Whoever repeats SIGTERM after some seconds does not want to wait."""
    signals = Signals(clock := Clock())
    signals.repeated(signal.SIGTERM)
    clock.now += SAME_WISH_S + 0.1

    assert signals.repeated(signal.SIGTERM)
