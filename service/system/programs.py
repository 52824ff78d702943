"""How to start another program of these packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ABOVE_PACKAGES = Path(__file__).resolve().parents[2]


def python_command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module as a program. -P: no file of the current folder is imported instead."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def python_environment() -> dict[str, str]:
    """The environment of such a program: our own, with the folder of our packages first on PYTHONPATH."""
    path = filter(None, (str(_ABOVE_PACKAGES), os.environ.get("PYTHONPATH")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
