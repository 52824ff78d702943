"""Looks at the folders of models every VIM_MODEL_POLL_S seconds, and loads what is new or has changed.

A version is loaded when its files are the same in two looks; then none of them is being written. Each change causes one
load. A version that could not be loaded is tried again after the next change, and so is a model that was unloaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.errors import ServiceError
from service.registry.sources import Sources, Stamp
from service.system import blocking

log = logging.getLogger("vim.registry")


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest version of a model in one look, and its files; None for a source that is not on this machine."""

    version: str
    files: Stamp | None


Look = Mapping[str, Seen]


class Control(Protocol):
    """Loads and unloads models, as `service.registry.registry.Registry`."""

    async def load(self, name: str, version: str | None = None) -> None:
        """Load the newest version of a model."""

    async def unload(self, name: str) -> None:
        """Unload a model."""


class Changes:
    """Finds what to load and to unload. Plain Python: no clock, no files."""

    def __init__(self, first: Look, default: str) -> None:
        """`first` is the look at the start, when every model in it was loaded. `default` is never unloaded."""
        self._done = dict(first)
        self._last: Look = first
        self._default = default

    def next(self, look: Look) -> tuple[list[str], list[str]]:
        """The names to load and to unload after this look.

        A look without any model changes nothing: the repository cannot be read for now.
        """
        if not look:
            return [], []
        last, self._last = self._last, look
        changed = [name for name, seen in look.items() if seen == last.get(name) and seen != self._done.get(name)]
        gone = [name for name in self._done if name not in look and name not in last and name != self._default]
        self._done |= {name: look[name] for name in changed}
        for name in gone:
            del self._done[name]
        return changed, gone


def look(sources: Sources) -> Look:
    """Look at the newest version of each model. Blocks."""
    newest = {one.name: one for one in sources.all()}
    return {name: Seen(one.version, sources.files(one)) for name, one in newest.items()}


async def poll(sources: Sources, control: Control, first: Look, every_s: float) -> None:
    """Look every `every_s` seconds and act on the changes, until cancelled."""
    changes = Changes(first, sources.default)
    while True:
        await asyncio.sleep(every_s)
        changed, gone = changes.next(await blocking.run(look, sources))
        for name in changed:
            await _act(control.load(name), f"{name} has changed, but cannot be loaded")
        for name in gone:
            await _act(control.unload(name), f"{name} is gone, but cannot be unloaded")


async def _act(action: Awaitable[None], failure: str) -> None:
    try:
        await action
    except ServiceError as error:
        log.error("%s: %s", failure, error.detail)
