"""Write to a person's terminal: escaped text, and one line on stderr that shows the progress of a command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_S = 0.1
_BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


def escaped(text: str) -> str:
    """The text without characters that could move the cursor, forge a line or not be encoded.

    Names of files and classes may contain any character.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Progress:
    """Counts images and draws one line on stderr, only on a terminal. `note` writes lines that stay."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.failed = 0
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self.on_terminal = self._stream.isatty()
        self._start = clock()
        self._drawn_at = -_REDRAW_S

    @property
    def seconds(self) -> float:
        """Seconds since `begin`."""
        return self._clock() - self._start

    def busy(self, what: str) -> None:
        """Draw what the command does before the first image."""
        self._draw(escaped(what))

    def begin(self) -> None:
        """Start the clock: the first image follows."""
        self._start = self._clock()

    def step(self, *, failed: bool) -> None:
        """Count one answered image."""
        self.done += 1
        self.failed += failed
        if self._clock() - self._drawn_at >= _REDRAW_S:
            self._draw(self._line())

    def note(self, text: str) -> None:
        """Print a line on stderr that stays."""
        self.clear()
        print(escaped(text), file=self._stream, flush=True)

    def clear(self) -> None:
        """Erase the drawn line before something is printed to stdout, which may be the same terminal."""
        self._write(_CLEAR)
        self._drawn_at = -_REDRAW_S

    def _draw(self, line: str) -> None:
        self._write(f"{_CLEAR}{line}")
        self._drawn_at = self._clock()

    def _write(self, text: str) -> None:
        if self.on_terminal:
            self._stream.write(text)
            self._stream.flush()

    def _line(self) -> str:
        filled = _BAR_WIDTH * self.done // max(1, self._total)
        rate = self.done / max(self.seconds, 1e-9)
        left = (self._total - self.done) / rate
        failed = f", {self.failed} failed" if self.failed else ""
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        return f"[{bar}] {self.done}/{self._total}{failed}, {rate:.1f}/s, {left:.0f} s left"
