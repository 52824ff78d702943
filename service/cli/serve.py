"""The command `serve`: its options, its help with every setting, and the start of the server."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any

from service import log
from service.cli import config, preflight
from service.settings import Settings, groups, variable
from service.system import field_words

# Every setting is a VIM_ variable; these are options too. Keys are not: other users can see a command line.
OPTIONS = ("host", "port", "model", "labels", "device", "dtype", "http_workers", "max_batch", "cache_dir", "log_level")
_WIDTH, _INDENT = 100, " " * 6
_DESCRIPTION = """\
Serve the model over HTTP. Each setting below is an environment variable; the most used ones are options as well. A file
for --config has them in small letters without VIM_: port = 8080. An option takes precedence over its variable, and that
over the file.
"""


def add(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    serve = commands.add_parser(
        "serve",
        help="serve the model over HTTP (settings: options, VIM_* environment variables, a file)",
        description=_DESCRIPTION,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config.add(serve)
    for name in OPTIONS:
        serve.add_argument(option(name), metavar=name.upper(), help=_first_clause(name))
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal. Raises SettingsError, ModelError and CommandError before anything is loaded."""
    given = {variable(name): value for name in OPTIONS if (value := getattr(options, name)) is not None}
    settings = config.load(options.config, given)
    log.configure(settings.log_level)
    preflight.check(settings)
    from service.server.server import serve

    return serve(settings)


def option(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def settings_help() -> str:
    """Every setting by group: its names, its default, what it means."""
    return "\n\n".join(f"{group}:\n" + "\n".join(map(_entry, names)) for group, names in groups().items())


def unknown(arguments: Sequence[str]) -> str:
    """The error for arguments that the command does not have. If one is named as a setting, it names the variable."""
    name = arguments[0].lstrip("-").partition("=")[0].replace("-", "_")
    if arguments[0].startswith("--") and name in Settings.model_fields:
        only = "" if name not in OPTIONS else " (an option of serve only)"
        return f"{arguments[0]} is not an option here{only}: set {variable(name)} in the environment"
    near = difflib.get_close_matches(arguments[0].partition("=")[0], [*map(option, OPTIONS), "--config"], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unrecognized arguments: {' '.join(arguments)}{hint}"


def _entry(name: str) -> str:
    field = Settings.model_fields[name]
    names = f"{option(name)}, {variable(name)}" if name in OPTIONS else variable(name)
    meaning = textwrap.fill(str(field.description), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    default = field_words.shown(field.get_default())
    return f"  {names} ({'unset' if default is None else f'default {default}'})\n{meaning}"


def _first_clause(name: str) -> str:
    """The beginning of the description; the rest is in the list of all settings."""
    text = str(Settings.model_fields[name].description).partition(";")[0].partition(". ")[0]
    return f"{text.rstrip('.')} ({variable(name)})".replace("%", "%%")
