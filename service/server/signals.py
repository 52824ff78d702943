"""Decides whether a repeated signal ends the process at once.

Supervisors often send SIGTERM twice within a moment: GNU `timeout` to the process and to its group, a preStop hook and
then the kubelet. Such a pair is one request to stop. A person who presses Ctrl-C twice wants the process to end.
"""

from __future__ import annotations

import signal

SAME_WISH_S = 3.0


class Signals:
    """The signals that a process has received."""

    def __init__(self) -> None:
        self.count = 0
        self._first_at = 0.0

    def repeated(self, number: int, now: float) -> bool:
        """Record a signal at time `now`, in seconds. True if it means: end at once."""
        self.count += 1
        if self.count == 1:
            self._first_at = now
            return False
        return number == signal.SIGINT or now - self._first_at > SAME_WISH_S
