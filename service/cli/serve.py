"""The command `serve`: its options, and what is checked before the server is imported and the model loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from model.loading import source
from service import log
from service.cli.backend import CommandError
from service.settings import Settings, variable

# Every setting is a VIM_ variable; these are options too. Keys are not: other users can see a command line.
OPTIONS = ("host", "port", "model", "labels", "device", "dtype", "http_workers", "max_batch", "cache_dir", "log_level")


def add(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    others = ", ".join(variable(name) for name in Settings.model_fields if name not in OPTIONS)
    serve = commands.add_parser(
        "serve",
        help="serve the model over HTTP (settings: options, and VIM_* environment variables)",
        description="Serve the model over HTTP. An option takes precedence over its variable.",
        epilog=f"Settings that are environment variables only (README.md has the table): {others}",
    )
    for name in OPTIONS:
        info = Settings.model_fields[name]
        help_text = f"{variable(name)}: {info.description}".replace("%", "%%")
        serve.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=help_text)
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal. Raises SettingsError, ModelError and CommandError before anything is loaded."""
    given = {variable(name): value for name in OPTIONS if (value := getattr(options, name)) is not None}
    os.environ.update(given)  # children inherit it
    settings = Settings.load()
    os.environ.pop(variable("api_keys"), None)
    log.configure(settings.log_level)
    source.check(settings.model)
    check_port(settings)
    from service.server.server import serve

    return serve(settings)


def check_port(settings: Settings) -> None:
    """Raise CommandError if the server cannot listen. Without this check the error comes after the model is loaded."""
    from service.server.prefork import sockets

    try:
        with sockets.kept(settings.host, settings.port):
            pass
    except OSError as error:
        place, reason = f"{settings.host} port {settings.port}", error.strerror or str(error)
        raise CommandError(
            f"cannot listen on {place}: {reason.lower()}; set VIM_PORT (--port) or VIM_HOST (--host) to another"
        ) from error


def unknown(arguments: Sequence[str]) -> str:
    """The error for arguments that the command does not have. If one is named as a setting, it names the variable."""
    name = arguments[0].lstrip("-").partition("=")[0].replace("-", "_")
    if arguments[0].startswith("--") and name in Settings.model_fields:
        only = "" if name not in OPTIONS else " (an option of serve only)"
        return f"{arguments[0]} is not an option here{only}: set {variable(name)} in the environment"
    return f"unrecognized arguments: {' '.join(arguments)}"
