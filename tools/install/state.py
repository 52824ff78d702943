"""The state of .venv: whether its Python runs, which packages are complete, and what was installed last."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

SUITABLE = ((3, 11), (3, 14))
_MARK = ".installing"  # exists while packages are being installed
_PROBE = "import sys, pip; print(*sys.version_info[:2])"


def unusable(venv: Path, root: Path, required: tuple[int, int] | None) -> str | None:
    """Return why the environment cannot be used; None if it can."""
    if not venv.is_dir():
        return f"{_name(venv, root)} does not exist"
    try:
        python = str(venv / "bin" / "python")
        probe = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=True)
        major, minor = map(int, probe.stdout.split())
    except (OSError, ValueError, subprocess.CalledProcessError):
        return f"{_name(venv, root)} is broken or incomplete"
    if required is not None and required != (major, minor):
        return f"{_name(venv, root)} has Python {major}.{minor}, and PYTHON names another version"
    if not SUITABLE[0] <= (major, minor) <= SUITABLE[1]:
        return f"{_name(venv, root)} has Python {major}.{minor}, which is not supported"
    return None


def mark(venv: Path) -> None:
    """Mark the start of an installation, and remove the stamps of earlier ones."""
    (venv / _MARK).touch()
    for stamp in venv.glob(".installed-*"):
        stamp.unlink()


def unmark(venv: Path) -> None:
    """Mark the end of an installation."""
    (venv / _MARK).unlink()


def is_marked(venv: Path) -> bool:
    """Return whether an installation was interrupted."""
    return (venv / _MARK).exists()


def read_stamp(venv: Path, name: str) -> str:
    """Return the fingerprint of what was installed; empty if that is incomplete."""
    path = venv / f".installed-{name}"
    return "" if is_marked(venv) or not path.exists() else path.read_text(encoding="ascii")


def write_stamp(venv: Path, name: str, fingerprint: str) -> None:
    """Write the fingerprint of what was installed."""
    (venv / f".installed-{name}").write_text(fingerprint, encoding="ascii")


def remove_incomplete(venv: Path) -> None:
    """Remove the metadata of packages whose files are not all there: pip then installs them again."""
    for folder in _site_packages(venv):
        for package in folder.glob("*.dist-info"):
            if not _is_complete(package):
                shutil.rmtree(package)
        for remains in folder.glob("~*"):  # of a package that pip was removing
            shutil.rmtree(remains, ignore_errors=True)


def version(venv: Path, name: str) -> str:
    """The version of an installed package without its local part, such as +cpu; empty if it is not installed."""
    found = metadata.distributions(name=name, path=[str(one) for one in _site_packages(venv)])
    return next((one.version.partition("+")[0] for one in found), "")


def contents(venv: Path) -> tuple[int, int]:
    """Return the number of packages without pip, and the bytes of all files."""
    packages = sum(1 for folder in _site_packages(venv) for _ in folder.glob("*.dist-info")) - 1
    files = (os.path.join(folder, name) for folder, _, names in os.walk(venv) for name in names)
    return packages, sum(os.lstat(path).st_size for path in files)


def _site_packages(venv: Path) -> Iterator[Path]:
    yield from venv.glob("lib/python*/site-packages")


def _is_complete(package: Path) -> bool:
    """pip writes INSTALLER and RECORD last; RECORD has the size of every other file."""
    record = package / "RECORD"
    if not record.is_file() or not (package / "INSTALLER").is_file():
        return False
    with record.open(encoding="utf-8", newline="") as rows:
        return all(_has_size(package.parent / path, size) for path, _, size in csv.reader(rows) if size)


def _has_size(path: Path, size: str) -> bool:
    return path.is_file() and path.stat().st_size == int(size)


def _name(venv: Path, root: Path) -> str:
    return str(venv.relative_to(root))


if sys.version_info[:2] < SUITABLE[0]:
    sys.exit("use `sh tools/install/run.sh`, which finds a supported Python")
