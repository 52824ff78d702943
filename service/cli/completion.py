"""Shell completion: `vim-server --print-completion bash`. The only module that uses shtab, which is optional."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from service.settings import Settings

PROGRAM = "vim-server"
SHELLS = ("bash", "zsh", "tcsh")
ABSENT = "shell completion needs the package shtab: pip install 'vim-server[completion]', or pip install shtab"
_FILES = {"FILE", "MODEL", "LABELS", "TLS_CERT"}
_FOLDERS = {"CACHE_DIR"}


class PrintCompletion(argparse.Action):
    """Print the completion program for a shell, and exit. `make` creates a parser for the installed command."""

    def __init__(self, *, make: Callable[[str], argparse.ArgumentParser], **kwargs: Any) -> None:
        super().__init__(choices=SHELLS, **kwargs)
        self._make = make

    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, shell: str | Sequence[Any] | None, *__: Any
    ) -> None:
        """Handle the option."""
        try:
            print(completion(self._make(PROGRAM), str(shell)))
        except ImportError:
            parser.exit(1, f"{ABSENT}\n")
        parser.exit(0)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of all commands. Raises ImportError without shtab."""
    import shtab

    for action in _actions(parser):
        names = {str(action.metavar)}
        kind = shtab.FILE if names & _FILES else shtab.DIRECTORY if names & _FOLDERS else None
        if kind is not None:
            action.complete = kind  # type: ignore[attr-defined]  # the interface of shtab
        elif action.dest in Settings.model_fields:
            action.choices = [one for one in get_args(Settings.model_fields[action.dest].annotation) if one] or None
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
