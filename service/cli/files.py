"""Find the image files that the arguments name, and read them. Does not decode them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.cli.backend import Failed
from service.errors import ServiceError
from service.images.formats import accepted_format

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class File:
    """A file to answer, or the error instead of an answer."""

    name: str
    error: Failed | None = None


def find(arguments: Sequence[str]) -> list[File]:
    """Every file that is named, whatever its ending; for a folder the images below it, sorted by path.

    Only regular files of a folder count, also through links. Its hidden entries (a leading dot) are skipped, and links
    to folders are not followed.
    """
    return [file for argument in arguments for file in _find(argument)]


def read(file: File, max_bytes: int) -> bytes | Failed:
    """The bytes of the file, unless there are more than the limit."""
    if file.error is not None:
        return file.error
    try:
        with Path(file.name).open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        return _unreadable(error)
    if len(data) > max_bytes:
        return Failed("body_too_large", f"larger than {max_bytes} bytes (VIM_MAX_BODY_BYTES)")
    return data


def refusal(file: File) -> Failed | None:
    """The error of a file whose first bytes are not those of an image; None if it may be an image."""
    path = Path(file.name)
    if file.error is not None or (path.exists() and not path.is_file()):  # a pipe can be read only once
        return file.error
    try:
        with path.open("rb") as stream:
            accepted_format(stream.read(_HEAD_BYTES))
    except OSError as error:
        return _unreadable(error)
    except ServiceError as error:
        return Failed(error.code, error.detail)
    return None


def _find(argument: str) -> Iterator[File]:
    if not Path(argument).is_dir():
        yield File(argument)
        return
    found = sorted(_walk(argument), key=lambda file: Path(file.name))
    yield from found or [File(argument, Failed("empty_folder", f"no image in this folder ({', '.join(SUFFIXES)})"))]


def _walk(folder: str) -> Iterator[File]:
    unreadable: list[OSError] = []
    for directory, inner, names in os.walk(folder, onerror=unreadable.append):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and _regular(directory, name):
                yield File(os.path.join(directory, name))
    for error in unreadable:
        yield File(str(error.filename), _unreadable(error))


def _regular(directory: str, name: str) -> bool:
    """Return False for pipes, sockets and devices, which may never end. Reading reports the error of any other file."""
    try:
        return stat.S_ISREG(os.stat(os.path.join(directory, name)).st_mode)
    except OSError:
        return True


def _unreadable(error: OSError) -> Failed:
    return Failed("unreadable", error.strerror or type(error).__name__)
