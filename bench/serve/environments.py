"""An environment for each peer, under a cache folder outside the repository: built once for its pins.

The project's own packages, torch among them, follow on their path, so that all peers use the same ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

DEFAULT_CACHE = Path("~/.cache/vim-server/bench").expanduser()


def interpreter(name: str, pins: Sequence[str], cache: Path) -> Path:
    """The Python that runs this peer; its environment is created unless it exists with these versions."""
    if not pins:
        return Path(sys.executable)
    folder = cache / "environments" / name.replace(" ", "-")
    stamp = folder / ".built"
    if not stamp.is_file() or stamp.read_text().split("\n") != _stamp(pins):
        shutil.rmtree(folder, ignore_errors=True)
        _build(folder, pins)
        stamp.write_text("\n".join(_stamp(pins)))
    return folder / "bin" / "python"


def versions(python: Path, pins: Sequence[str]) -> list[str]:
    """The installed versions of the pinned packages, as the environment reports them."""
    names = [pin.partition("==")[0].partition("[")[0] for pin in pins]
    program = f"from importlib.metadata import version\nfor name in {names!r}: print(name, version(name))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[: len(names)]


def _stamp(pins: Sequence[str]) -> list[str]:
    return [*pins, f"python {sys.version.split()[0]}", sysconfig.get_path("purelib")]


def _build(folder: Path, pins: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, *pins], check=True)
