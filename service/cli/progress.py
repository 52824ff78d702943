"""How far a command is: one line on stderr that is drawn over, and only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from service.cli.text import shown

_REDRAW_S = 0.1
_WIDTH = 24
_CLEAR = "\r\x1b[K"


class Progress:
    """Counts images; `print` and `note` write lines without breaking the drawn one."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.failed = 0
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = self._stream.isatty()
        self._start = clock()
        self._drawn_at = -_REDRAW_S

    @property
    def live(self) -> bool:
        """Is somebody watching?"""
        return self._live

    @property
    def seconds(self) -> float:
        """Since the first image was begun."""
        return self._clock() - self._start

    def busy(self, what: str) -> None:
        """Say what is going on before the first image."""
        self._draw(shown(what))

    def begin(self) -> None:
        """The first image is about to start: what came before does not count."""
        self._start = self._clock()

    def step(self, *, failed: bool) -> None:
        """One image more is answered."""
        self.done += 1
        self.failed += failed
        if self._clock() - self._drawn_at >= _REDRAW_S:
            self._draw(self._line())

    def note(self, text: str) -> None:
        """A line on stderr that stays."""
        self.clear()
        print(shown(text), file=self._stream, flush=True)

    def clear(self) -> None:
        """Make way for a line on stdout, which may be the same terminal."""
        self._write(_CLEAR)
        self._drawn_at = -_REDRAW_S

    def _draw(self, line: str) -> None:
        self._write(f"{_CLEAR}{line}")
        self._drawn_at = self._clock()

    def _write(self, text: str) -> None:
        if self._live:
            self._stream.write(text)
            self._stream.flush()

    def _line(self) -> str:
        filled = _WIDTH * self.done // max(1, self._total)
        rate = self.done / max(self.seconds, 1e-9)
        left = (self._total - self.done) / rate
        failed = f", {self.failed} failed" if self.failed else ""
        bar = "#" * filled + "-" * (_WIDTH - filled)
        return f"[{bar}] {self.done}/{self._total}{failed}, {rate:.1f}/s, {left:.0f} s left"
