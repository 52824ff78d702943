"""Settings from a TOML file (`--config`): its keys are the settings' names in small letters.

    model = "weights/vim-tiny.pth"     # a relative path means the folder of the file
    port = 8080
    fetch_hosts = ["images.example.org", ".cdn.example.org"]

An option takes precedence over a variable of the environment, and that over the file. Whether a value is good is
checked in `service.settings`, as for every other source.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import SettingsError
from service.settings import Settings, variable
from service.system import environment

_PATHS = ("tls_cert", "tls_key", "api_keys_file", "admin_keys_file", "model_repository", "cache_dir")
_KEYS = ("api_keys", "admin_keys")
_NAMES_OR_PATHS = ("model", "labels")  # where an existing path takes precedence over a name
_NONE: Mapping[str, str] = {}
_OTHERS_READ = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True)
class Config:
    """The values of a file as variables, and for each of them how messages call it."""

    values: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)


def add(parser: argparse.ArgumentParser) -> None:
    """Add `--config` to a command."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file of settings, for example: port = 8080")


def load(path: Path | None, options: Mapping[str, str] = _NONE) -> Settings:
    """The settings from options, environment and file, in this order of precedence. Raises SettingsError.

    All of them but keys are in the environment afterwards, where child processes find them.
    """
    config = Config() if path is None else read(path)
    variables = {name for name, text in environment.ours(os.environ).items() if text.strip()}
    used = {name: text for name, text in config.values.items() if name not in variables | options.keys()}
    os.environ.update({**used, **options})
    settings = Settings.load(origins={name: config.origins[name] for name in used})
    for key in _KEYS:
        os.environ.pop(variable(key), None)
    return settings


def read(path: Path) -> Config:
    """Read the file. Raises SettingsError with one line for each key that is no setting, or has no usable value."""
    text = _text(path)
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {_in_one_line(error)}") from None
    origins = {key: f"{path}, line {_line(text, key)}: {key}" for key in entries}
    if mistakes := [*_mistakes(entries, origins)]:
        raise SettingsError("\n".join(mistakes))
    if not entries.keys().isdisjoint(_KEYS) and path.stat().st_mode & _OTHERS_READ:
        print(f"{path} has keys, and other users of this machine can read it: chmod 600 {path}", file=sys.stderr)
    values = {variable(key): _placed(key, _as_text(value), path.parent) for key, value in entries.items()}
    return Config(values, {variable(key): origin for key, origin in origins.items()})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--config: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"--config: {path} is not a text in UTF-8") from None


def _mistakes(entries: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    for key, value in entries.items():
        if key not in Settings.model_fields:
            yield f"{origins[key].removesuffix(key)}{environment.unknown(key, Settings.model_fields)}"
        elif isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            yield f"{origins[key]} must be a text, a number, true, false or a list of texts"


def _line(text: str, key: str) -> int:
    """The number of the line that sets the key, or 1."""
    wanted = re.compile(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if wanted.match(line)), 1)


def _as_text(value: object) -> str:
    """A value as the environment would have it."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _placed(key: str, text: str, folder: Path) -> str:
    """A relative path as one from the file's folder."""
    if key == "models":
        return ",".join(_placed_source(entry, folder) for entry in text.split(","))
    if not text.strip() or text.startswith("~"):
        return text
    if key in _PATHS or (key in _NAMES_OR_PATHS and (folder / text).exists()):
        return str((folder / text).absolute())
    return text


def _placed_source(entry: str, folder: Path) -> str:
    """One NAME=SOURCE of several models."""
    name, equals, source = entry.partition("=")
    return name + equals + _placed("model", source.strip(), folder)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
