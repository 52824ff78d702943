"""Commands: `python -m service serve`."""

from __future__ import annotations

import argparse
import sys

from service import __version__, log
from service.errors import SettingsError
from service.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Vision Mamba inference server")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve the model over HTTP (settings: VIM_* environment variables)")
    parser.parse_args(arguments)
    return _serve()


def _serve() -> int:
    try:
        settings = Settings.load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    from service.server import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
