"""Where the files of each model and version are, as VIM_MODEL, VIM_MODELS or VIM_MODEL_REPOSITORY say.

A repository is read from disk with every call, which may block: call from a thread. What is loaded is not known here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from model.loading import shards
from service.errors import UnknownModel
from service.settings import Settings, variable
from service.settings.model_names import MOST, NAME, is_name, read

# (file, bytes, time of the last change in ns) of each file of a model.
Stamp = tuple[tuple[str, int, int], ...]

FIRST = "1"  # the version of a model that has no numbered folders
_VERSION = re.compile(r"[1-9][0-9]*")
_MOST_LISTED = 10
_LONGEST_SHOWN = 100

log = logging.getLogger("vim.registry")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One version of one model; `source` is a value for VIM_MODEL."""

    name: str
    version: str
    source: str


class Sources:
    """The models that the settings name. A listed model has one version; those of a repository are its folders."""

    def __init__(self, listed: Mapping[str, str], repository: Path | None = None) -> None:
        self._listed = dict(listed)
        self._repository = repository
        self._warned: set[str] = set()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The models of these settings. Reads nothing yet."""
        if settings.model_repository is not None:
            return cls({}, settings.model_repository)
        return cls(read(settings.models) if settings.models else {settings.served_name: settings.model})

    @property
    def default(self) -> str:
        """The model for requests that name none. Raises UnknownModel while a repository has no model."""
        if names := self.names():
            return names[0]
        raise UnknownModel("this server has no models at present")

    def names(self) -> tuple[str, ...]:
        """The names of all models, the default first."""
        if self._repository is None:
            return tuple(self._listed)
        names = [name for name in self._folders(self._repository) if self.versions(name)]
        if len(names) > MOST:
            self._warn(
                f"{variable('model_repository')} has more than {MOST} models; {names[MOST]} and later are ignored"
            )
        return tuple(names[:MOST])

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, in ascending order; none if there is no such model."""
        return tuple(self._versions(name))

    def all(self) -> tuple[ModelSource, ...]:
        """All versions of all models: the default model first, the versions of each in ascending order."""
        return tuple([ModelSource(name, *one) for name in self.names() for one in self._versions(name).items()])

    def find(self, name: str, version: str | None = None) -> ModelSource:
        """One version of a model, by default the highest. Raises UnknownModel if there is none."""
        known = {one.version: one for one in self.all() if one.name == name}
        if not known:
            raise UnknownModel(f"model {_shown(name)} does not exist; this server has {few(self.names())}")
        wanted = version or tuple(known)[-1]
        if wanted not in known:
            versions = few(tuple(known)[::-1])
            raise UnknownModel(f"model {name!r} does not have version {_shown(wanted)}; it has {versions}")
        return known[wanted]

    def files(self, source: ModelSource) -> Stamp | None:
        """A value that changes with the files of a version; None for a released model or one on the hub.

        Two equal values, some time apart, mean that no file is being written.
        """
        path = Path(source.source).expanduser()
        if os.path.isfile(path):
            return _stamp(_files(path.parent) if shards.is_index(path) else [path])
        return _stamp(_files(path)) if self._repository is not None or os.path.isdir(path) else None

    def _versions(self, name: str) -> dict[str, str]:
        """Version -> source, in ascending order; empty if there is no such model."""
        if self._repository is None:
            return {FIRST: self._listed[name]} if name in self._listed else {}
        places = self._places(self._repository / name) if is_name(name) else {}
        return {version: str(places[version]) for version in sorted(places, key=int)}

    def _folders(self, repository: Path) -> list[str]:
        """The names of the folders in a repository that are names of models."""
        try:
            folders = [entry.name for entry in _entries(repository) if os.path.isdir(entry)]
        except OSError as error:
            self._warn_unreadable(repository, error)
            return []
        for name in folders:
            if not is_name(name):
                self._warn(f"{variable('model_repository')}: folder {name!r} is ignored: its name must be {NAME}")
        return sorted(filter(is_name, folders))

    def _places(self, model: Path) -> dict[str, Path]:
        """Version -> folder: the numbered folders with files in them; without numbered folders the model's own."""
        try:
            numbered = [one for one in _entries(model) if _VERSION.fullmatch(one.name) and os.path.isdir(one)]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self._warn_unreadable(model, error)
            return {}
        places = {folder.name: folder for folder in numbered} or {FIRST: model}
        return {version: folder for version, folder in places.items() if _files(folder)}

    def _warn_unreadable(self, folder: Path, error: OSError) -> None:
        self._warn(f"{variable('model_repository')}: {folder} cannot be read: {error.strerror}")

    def _warn(self, message: str) -> None:
        """Log a warning, once."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)


def settings_for(settings: Settings, source: ModelSource) -> Settings:
    """The settings with which one version of one model is loaded."""
    only = {"model": source.source, "model_name": source.name, "models": "", "model_repository": None}
    return settings.model_copy(update=only)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without hidden entries: Kubernetes keeps the files of a volume in `..data`, behind links."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _files(folder: Path) -> list[Path]:
    """The files at the top of a folder, where a model has all of its files; none if it cannot be read."""
    try:
        return [entry for entry in _entries(folder) if os.path.isfile(entry)]
    except OSError:
        return []


def _stamp(files: Iterable[Path]) -> Stamp:
    found = []
    for file in files:
        try:
            status = os.stat(file)  # of what a link leads to
        except OSError:  # removed meanwhile
            continue
        found.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def few(texts: tuple[str, ...]) -> str:
    """At most ten of the texts, in words."""
    more = len(texts) - _MOST_LISTED
    return (", ".join(texts[:_MOST_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")


def _shown(text: str) -> str:
    return repr(text[:_LONGEST_SHOWN])
