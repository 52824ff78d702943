"""Isolated environments for the clients, under `.clients/`: built once for each set of pinned versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.clients.matrix import Place, of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".clients"
PYTEST = "pytest==9.2.0"
# perf_analyzer's binary in newer packages needs glibc 2.38; this one needs two libraries beside it.
PERF_LIBRARIES = ("nvidia-cuda-runtime-cu12==12.9.79",)
PERF_DEBIAN = "libb64-0d"


TOOLS = {"npm": "apt-get install npm", "dpkg-deb": "it comes with Debian", "apt-get": "it comes with Debian"}
NEEDED: dict[Place, tuple[str, ...]] = {"node": ("npm",), "perf": ("apt-get", "dpkg-deb")}


class Missing(Exception):  # noqa: N818 - what is missing
    """A program that an environment needs is not installed; the message says how to get it."""


def build(place: Place) -> Path:
    """The environment's folder, made if it is not there in these versions. Raises CalledProcessError, Missing."""
    pins = [client.pin for client in of(place)]
    folder = FOLDER / place
    stamp = folder / ".built"
    if not stamp.is_file() or pins != stamp.read_text().split():
        for tool in NEEDED.get(place, ()):
            if shutil.which(tool) is None:
                raise Missing(f"{tool} is not installed: {TOOLS[tool]}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        {"node": _node, "perf": _perf}.get(place, _python)(folder, pins)
        stamp.write_text("\n".join(pins))
    return folder


def _python(folder: Path, pins: Sequence[str]) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", PYTEST, *pins)


def _node(folder: Path, pins: Sequence[str]) -> None:
    (folder / "package.json").write_text('{"private": true}')
    _run("npm", "install", "--prefix", str(folder), "--silent", "--no-audit", "--no-fund", *pins)


def _perf(folder: Path, pins: Sequence[str]) -> None:
    fetch = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder))
    _run(*fetch, "--platform", "manylinux1_x86_64", "--only-binary=:all:", *pins)
    _run(*fetch, *PERF_LIBRARIES)
    subprocess.run(["apt-get", "download", "-qq", PERF_DEBIAN], cwd=folder, check=True)
    for wheel in folder.glob("*.whl"):
        shutil.unpack_archive(wheel, folder, "zip")
    _run("dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder))
    next(folder.glob("*.data/data/bin/perf_analyzer")).chmod(0o755)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
