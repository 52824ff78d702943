"""The heads in VIM_HEADS_DIR, one file for each: NAME.safetensors.

The directory is the only state. Each request checks whether the files of its heads have changed since they were read.
So a new file is used as soon as it is in place: by all HTTP processes, by those that start later, and by other servers
that share the directory. A file that someone copies there is used too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model.errors import HeadError
from model.heads.head import MOST_BYTES, Head
from service.errors import InvalidHead, UnknownHead
from service.system import blocking

log = logging.getLogger("vim.heads")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAMES_ARE = "a letter or digit, then at most 63 letters, digits, dots, hyphens and underscores"
SUFFIX = ".safetensors"


class _State(NamedTuple):
    """Identifies one version of a file; `Heads.put` gives each a time of its own."""

    inode: int
    changed_ns: int
    size: int


def split(name: str) -> tuple[str, str | None]:
    """The name of a model, and that of a head in NAME~HEAD; None if the name has no head."""
    model, mark, head = name.partition("~")
    return model, head if mark else None


@dataclass(frozen=True, slots=True, eq=False)
class NamedHead:
    """A head as a request uses it."""

    name: str
    head: Head


class Heads:
    """The heads of one HTTP process."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._read: dict[str, tuple[_State, NamedHead]] = {}

    @property
    def enabled(self) -> bool:
        """Whether the server has a directory of heads."""
        return self._directory is not None

    def check(self, name: str) -> None:
        """Raise UnknownHead if there is no such head. Does not read it."""
        self._state(name)

    async def get(self, name: str) -> NamedHead:
        """The head as it is now. Raises UnknownHead, and InvalidHead if its file is damaged."""
        known = self._known(name, self._state(name))
        return known if known is not None else await blocking.run(self._load, name)

    async def of(self, fingerprint: str) -> list[NamedHead]:
        """The heads of the model with this fingerprint; damaged ones are left out."""
        found: list[NamedHead] = []
        for name in await blocking.run(self.names):
            with contextlib.suppress(UnknownHead, InvalidHead):
                found.append(await self.get(name))
        return [one for one in found if one.head.model == fingerprint]

    def names(self) -> list[str]:
        """The names of all heads, sorted."""
        if self._directory is None:
            return []
        with contextlib.suppress(FileNotFoundError):
            names = [entry.name.removesuffix(SUFFIX) for entry in os.scandir(self._directory) if _is_head(entry.name)]
            return sorted(names)
        return []

    def read_all(self) -> None:
        """Read all heads, so that the log names those that are damaged. Requests for the others are still answered."""
        for name in self.names():
            try:
                self._load(name)
            except (InvalidHead, UnknownHead) as error:
                log.warning("%s", error)

    def put(self, name: str, head: Head, data: bytes) -> None:
        """Write the file of a head; requests that begin after this use it. Raises OSError."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.utime(file.fileno(), ns=(now := time.time_ns(), now))  # the file system's clock may be coarse
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        _sync(path.parent)
        log.info("head %s replaced: fingerprint %s", name, head.fingerprint)

    def delete(self, name: str) -> None:
        """Remove the file of a head. Raises UnknownHead, and OSError."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise _unknown(name) from None
        self._read.pop(name, None)
        log.info("head %s removed", name)

    def content(self, name: str) -> bytes:
        """The file of a head. Raises UnknownHead, InvalidHead, OSError."""
        try:
            with self._path(name).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            raise _unknown(name) from None
        return data

    def _load(self, name: str) -> NamedHead:
        """Read the file, unless it is known already. The state is taken first: a later one is then read again."""
        state = self._state(name)
        try:
            found = NamedHead(name, Head.read(self.content(name)))
        except HeadError as error:
            raise InvalidHead(f"the head {name!r} of this server cannot be used: {error}") from error
        except OSError as error:
            raise InvalidHead(f"the head {name!r} of this server cannot be read: {error.strerror}") from error
        self._read[name] = state, found
        return found

    def _known(self, name: str, state: _State) -> NamedHead | None:
        known = self._read.get(name)
        return known[1] if known is not None and known[0] == state else None

    def _state(self, name: str) -> _State:
        try:
            status = os.stat(self._path(name))
        except OSError:
            self._read.pop(name, None)
            raise _unknown(name) from None
        return _State(status.st_ino, status.st_mtime_ns, status.st_size)

    def _path(self, name: str) -> Path:
        if self._directory is None:
            raise UnknownHead("this server has no custom heads (VIM_HEADS_DIR)")
        if not NAME.fullmatch(name):
            raise _unknown(name)
        return self._directory / (name + SUFFIX)


def _is_head(file: str) -> bool:
    return file.endswith(SUFFIX) and NAME.fullmatch(file.removesuffix(SUFFIX)) is not None


def _unknown(name: str) -> UnknownHead:
    return UnknownHead(f"there is no head {name[:100]!r}")


def _sync(directory: Path) -> None:
    """Make a replaced file survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
