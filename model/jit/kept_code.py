"""Machine code on disk: one file for each kernel, whose digest is compared before numba reads its content.

The name of a file and its digest cover the sources, the versions, the kernel and the processor, so a file for other
ones is never used. There is no index, so an upgrade that fails halfway leaves nothing that points to old code. The
digest finds damage; it is no protection against someone who may write to the directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

log = logging.getLogger("vim.model")
# Messages that every process of a service would write have their own logger, so that all but one process can be silent.
place_log = logging.getLogger("vim.model.cache_place")

MAGIC = b"vim machine code 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
SUFFIX = ".code"

_told: set[Path | None] = set()  # directories whose line has been written by this process
_TOLD_LOCK = threading.Lock()


class KeptCode(NullCache):
    """numba's interface to a cache, for one kernel."""

    def __init__(
        self, function: Callable[..., Any], version: str, directory: Path | None, shipped: Path | None = None
    ) -> None:
        """Code is read from `shipped` and `directory`, each with a folder per version, and written to `directory`."""
        self._function, self._version = function, version
        self._directory, self._shipped = (root and root / version for root in (directory, shipped))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the kernel, or None if it has to be compiled: there is no file, or it was damaged and is removed."""
        target.refresh()
        identity = self._identity(signature, target.codegen())
        found = (self._load(directory, identity, target) for directory in (self._shipped, self._directory) if directory)
        return next((code for code in found if code is not None), None)

    def _load(self, directory: Path, identity: str, target: Any) -> Any:
        path = directory / self._name(identity)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _tell(directory, error)
            return None
        return self._rebuilt(path, payload(content, identity), target)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write the file completely or not at all."""
        if self._directory is None:
            tell_no_home()
            return
        if compiled.library.has_dynamic_globals:  # addresses of this process
            return
        identity = self._identity(signature, compiled.codegen)
        try:
            write(self._directory / self._name(identity), sealed(dumps(compiled._reduce()), identity))  # type: ignore[no-untyped-call]
        except OSError as error:
            _tell(self._directory, error)

    def _rebuilt(self, path: Path, data: bytes | None, target: Any) -> Any:
        if data is not None:
            try:
                return CompileResult._rebuild(target, *pickle.loads(data))  # type: ignore[no-untyped-call]
            except Exception as error:  # written by another build of numba or LLVM that calls itself the same version
                log.debug("%s: %s: %s", path, type(error).__name__, error)
        if path.parent == self._shipped:
            log.warning("%s is damaged: it is not used", path)
            return None
        log.warning("%s is damaged: it is removed, and the code compiled again", path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _tell(path.parent, error)
        return None

    def _identity(self, signature: Any, codegen: Any) -> str:
        """Everything that determines the machine code, as text."""
        code, closure = self._function.__code__, self._function.__closure__ or ()
        values = dumps(tuple(cell.cell_contents for cell in closure)) if closure else b""  # type: ignore[no-untyped-call]
        digests = (hashlib.sha256(part).hexdigest() for part in (code.co_code, values))
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        return "\n".join((self._version, name, str(signature), *map(str, codegen.magic_tuple()), *digests))

    def _name(self, identity: str) -> str:
        number = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{self._function.__name__}-{number}{SUFFIX}"


def sealed(data: bytes, identity: str) -> bytes:
    """Return the content of a file: MAGIC, the digest of identity and data, the data."""
    return MAGIC + _digest(data, identity) + data


def payload(content: bytes, identity: str) -> bytes | None:
    """Return the data of a file, or None if its content or its identity differs by one bit or more."""
    start = len(MAGIC) + DIGEST_BYTES
    data = content[start:]
    return data if content[:start] == MAGIC + _digest(data, identity) else None


def _digest(data: bytes, identity: str) -> bytes:
    text = identity.encode()
    return hashlib.sha256(len(text).to_bytes(8, "little") + text + data).digest()


def write(path: Path, content: bytes) -> None:
    """Write to a temporary name and rename; on an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # processes of several machines may share it
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def tell_no_home() -> None:
    """Log, once, that there is no directory for compiled code."""
    if _first(None):
        place_log.warning(
            "compiled code is not kept, so each start compiles it: uid %d has no home directory; "
            "set VIM_CACHE_DIR to a directory that it may write to",
            os.getuid(),
        )


def _tell(directory: Path, error: OSError) -> None:
    """Log, once for each directory, that it cannot be used, and how to change that."""
    if not _first(directory.parent):
        return
    said = log if any(directory.glob(f"*{SUFFIX}")) else place_log  # other processes may find their code there
    said.warning(
        "compiled code cannot be kept in %s (%s), so each start compiles it: this process has uid %d%s; "
        "make the directory writable for it, or set VIM_CACHE_DIR to another one",
        directory.parent,
        error.strerror or type(error).__name__,
        os.getuid(),
        _owner(directory.parent),
    )


def _owner(directory: Path) -> str:
    """The owner of the directory, or of the nearest existing directory above it, for the log."""
    for place in (directory, *directory.parents):
        try:
            return f", {place} belongs to uid {place.stat().st_uid}"
        except OSError:
            continue
    return ""


def _first(place: Path | None) -> bool:
    with _TOLD_LOCK:
        if place in _told:
            return False
        _told.add(place)
        return True
