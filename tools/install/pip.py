"""Runs the pip of .venv and shows its progress: the bar of one large package, or one line for each of many."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

_FETCHED = re.compile(
    r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?(\w[\w.]*-[^-\s]+)-\S+\.whl(?: (\([\d.]+ [kM]B\)))?(?:$| )"
)
_UNPACKED = re.compile(r"Installing collected packages: (.*)")


class InstallError(Exception):
    """The installation cannot continue; the message is for the user."""


def run(venv: Path, *arguments: str, with_bar: bool = False) -> None:
    """Run pip in the folder above. Raises InstallError. With its bar, pip writes to the terminal itself."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    output = None if with_bar else subprocess.PIPE
    with subprocess.Popen(command, cwd=venv.parent, stdout=output, text=True) as process:
        said = [shown(line) for line in process.stdout or ()]
    if process.returncode:
        print("".join(said[-20:]), end="", file=sys.stderr)
        raise InstallError(
            f"pip ended with status {process.returncode}: see its last lines. "
            "The same command continues where this one ended."
        )


def shown(line: str) -> str:
    """Show a line of pip if it says that something was fetched or is unpacked; return it."""
    if found := _FETCHED.match(line):
        print(f"  {unquote(found[1])} {found[2] or ''}".rstrip(), flush=True)
    elif found := _UNPACKED.match(line):
        print(f"  unpacking and compiling {len(found[1].split(', '))} packages", flush=True)
    return line
