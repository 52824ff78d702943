"""Find the image files that the arguments name, and read them. Does not decode them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.cli.backend import Failed

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class File:
    """A file to answer, or the error instead of an answer."""

    name: str
    error: Failed | None = None


def find(arguments: Sequence[str]) -> list[File]:
    """Every file that is named, whatever its ending; for a folder the images below it, sorted by path.

    Hidden entries of a folder (a leading dot) are skipped, and links to folders are not followed.
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
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield File(os.path.join(directory, name))
    for error in unreadable:
        yield File(str(error.filename), _unreadable(error))


def _unreadable(error: OSError) -> Failed:
    return Failed("unreadable", error.strerror or type(error).__name__)
