"""A repeated SIGTERM is ignored; a second SIGINT, or a late SIGTERM, ends the process at once."""

from __future__ import annotations

import signal

from service.server.signals import SAME_WISH_S, Signals


def test_sigterm_twice_within_a_moment_is_one_wish() -> None:
    """Two SIGTERMs within a moment count as one, because GNU `timeout` and the kubelet may send it twice."""
    signals = Signals()

    assert [False] * 3 == [signals.repeated(signal.SIGTERM, now) for now in (100.0, 100.1, 102.0)]


def test_a_second_ctrl_c_ends_at_once() -> None:
    """A second Ctrl-C ends the process at once."""
    signals = Signals()

    assert [False, True] == [signals.repeated(signal.SIGINT, now) for now in (100.0, 100.1)]


def test_a_late_sigterm_ends_at_once() -> None:
    """A SIGTERM that is repeated after some seconds ends the process at once."""
    signals = Signals()
    signals.repeated(signal.SIGTERM, 100.0)

    assert signals.repeated(signal.SIGTERM, 100.0 + SAME_WISH_S + 0.1)
