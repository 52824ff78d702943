"""The CPU image's lock: every package but torch, with the hashes of its wheels for both architectures.

    python -m tools.lock_image      # after a change of dependencies or constraints; asks the package index

Versions come from the constraints; nothing is chosen here. torch's CPU wheels come from an index of PyTorch's own, of
which nothing is said here: the Dockerfile installs exactly the pinned version from it, over TLS, and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "deploy" / "docker" / "requirements-cpu.lock"
MACHINES = ("x86_64", "aarch64")
GLIBC = ("2_28", "2_27", "2_17", "2_5")  # of the tags that wheels for the base image may have
APART = "torch"
EXTRAS = ("tracing", "heic", "grpc")
_HEAD = "# Made by `python -m tools.lock_image`. torch is not in it: see the Dockerfile.\n"


def python() -> str:
    """The image's Python, as the Dockerfile says."""
    found = re.search(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def roots() -> list[str]:
    """What is installed by name: the program's dependencies and EXTRAS, and what torch needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for name in EXTRAS for one in project["optional-dependencies"][name]]
    ours = [*project["dependencies"], *extras]
    return [one for one in [*ours, *needs(APART)] if canonicalize_name(Requirement(one).name) != APART]


def needs(package: str) -> Iterator[str]:
    """What an installed package asks for on this machine; the CPU build of torch asks for no CUDA libraries."""
    for text in metadata.requires(package) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            yield str(requirement)


def resolve(machine: str) -> dict[str, tuple[str, str]]:
    """Name -> version and hash of the wheel that pip would take there. Raises CalledProcessError."""
    tags = [f"--platform=manylinux_{glibc}_{machine}" for glibc in GLIBC] + [f"--platform=manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        where = [
            "--target",
            folder,
            "--report",
            str(report),
            "--python-version",
            python(),
            "--only-binary=:all:",
            *tags,
        ]
        subprocess.run([*command, *where, "--constraint", str(ROOT / "constraints-cpu.txt"), *roots()], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(one["metadata"]["name"]): (
            one["metadata"]["version"],
            one["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for one in found
    }


def render(machines: Iterable[dict[str, tuple[str, str]]]) -> str:
    """As pip --require-hashes reads it. Raises ValueError where machines differ in more than hashes."""
    hashes: dict[str, set[str]] = {}
    seen = [{f"{name}=={version}": sha256 for name, (version, sha256) in machine.items()} for machine in machines]
    if any(one.keys() != seen[0].keys() for one in seen):
        raise ValueError(f"the machines need different packages: {set.symmetric_difference(*map(set, seen))}")
    for one in seen:
        for pin, sha256 in one.items():
            hashes.setdefault(pin, set()).add(sha256)
    lines = (
        " \\\n".join([pin, *(f"    --hash=sha256:{one}" for one in sorted(some))])
        for pin, some in sorted(hashes.items())
    )
    return _HEAD + "\n".join(lines) + "\n"


def read(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and hashes."""
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    return {name: (version, re.findall(r"sha256:(\S+)", block)) for name, version, block in entries}


if __name__ == "__main__":
    LOCK.write_text(render(map(resolve, MACHINES)), encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(read(LOCK.read_text(encoding='utf-8')))} packages")
