"""Write to a person's terminal: escaped text, and a progress bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


def escaped(text: str) -> str:
    """The text without characters that could move the cursor, forge a line or not be encoded.

    Names of files and classes may contain any character.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Progress:
    """Counts images and draws a progress bar on stderr, only on a terminal. `note` writes lines that stay."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.failed = 0
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self.on_terminal = self._stream.isatty()
        self._start = clock()
        self._bar = self._draw("{desc}")

    @property
    def seconds(self) -> float:
        """Seconds since `begin`."""
        return self._clock() - self._start

    def busy(self, what: str) -> None:
        """Show what the command does before the first image."""
        self._bar.set_description_str(escaped(what))

    def count(self, total: int) -> None:
        """Set the number of images, before `begin`."""
        self._total = total

    def begin(self) -> None:
        """Start the clock: the first image follows."""
        self._start = self._clock()
        self._bar.close()
        self._bar = self._draw()

    def step(self, *, failed: bool) -> None:
        """Count one answered image."""
        self.done += 1
        self.failed += failed
        if failed:
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update()

    def note(self, text: str) -> None:
        """Print a line on stderr that stays."""
        with tqdm.external_write_mode(file=self._stream):
            print(escaped(text), file=self._stream, flush=True)

    def clear(self) -> None:
        """Erase the bar before something is printed to stdout, which may be the same terminal."""
        self._bar.clear()

    def _draw(self, layout: str | None = None) -> tqdm[None]:
        return tqdm(
            total=self._total,
            file=self._stream,
            unit="image",
            leave=False,
            disable=not self.on_terminal,
            bar_format=layout,
        )
