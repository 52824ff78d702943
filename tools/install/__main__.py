"""Installs what a target of the Makefile needs into .venv: `sh tools/install/run.sh serve|dev|cuda`.

Prints each step and its size before it begins, and nothing if everything is installed. Continues an installation
that was interrupted. Uses the standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.install import pip, state, torch

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
INPUTS = (
    "pyproject.toml",
    "setup.py",
    "client/pyproject.toml",
    "constraints.txt",
    "constraints-cpu.txt",
    "constraints-cuda.txt",
)


# The parts that can be installed, each with its own stamp -> their size.
SIZES = {
    "serve": "what serving needs beside torch: 48 packages, 117 MB to download, 440 MB on disk, about a minute",
    "dev": "what tests and checks need: 68 more packages, 300 MB to download, 1.1 GB on disk, about a minute",
}
CUDA_SIZE = "CUDA's libraries, several GB"


@dataclass(frozen=True)
class Profile:
    """What is installed: the requirements, and the parts that are complete then."""

    requirements: tuple[str, ...]
    parts: tuple[str, ...]


PROFILES = {"serve": Profile((".[heic]",), ("serve",)), "dev": Profile((".[dev]", "./client"), ("serve", "dev"))}


def main(name: str) -> int:
    """Install a profile; return the exit status. `cuda` is `dev` with CUDA's versions, whatever this machine has."""
    profile = PROFILES["dev" if name == "cuda" else name]
    try:
        return install(profile, with_cuda=name == "cuda" or torch.has_driver())
    except pip.InstallError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues where this one ended.", file=sys.stderr)
        return 130


def install(profile: Profile, *, with_cuda: bool) -> int:
    """Install what is missing; return 0. Raises pip.InstallError."""
    fingerprint, began = _fingerprint(), time.monotonic()
    reason = state.unusable(VENV, ROOT, required=_named_python())
    if reason is None and all(state.read_stamp(VENV, part) == fingerprint for part in profile.parts):
        return 0
    if reason is not None:
        _make_environment(reason)
    elif state.is_marked(VENV):
        state.remove_incomplete(VENV)
        say("The last installation was interrupted; continuing with what is missing.")
    missing = [part for part in profile.parts if not state.read_stamp(VENV, part)]
    state.mark(VENV)
    constraints = ROOT / f"constraints-{'cuda' if with_cuda else 'cpu'}.txt"
    _install_torch(constraints, with_cuda=with_cuda)
    say(f"Step 2 of 2: {_size(missing, with_cuda=with_cuda)}.")
    wanted = [argument for one in profile.requirements for argument in ("--editable", one)]
    pip.run(VENV, "install", *([] if missing else ["--quiet"]), "--constraint", str(constraints), *wanted)
    for part in profile.parts:
        state.write_stamp(VENV, part, fingerprint)
    state.unmark(VENV)
    packages, size = state.contents(VENV)
    say(f"Installed in {time.monotonic() - began:.0f} s: .venv has {packages} packages, {size / 1e6:,.0f} MB.")
    return 0


def say(line: str) -> None:
    """Print a line before a step."""
    print(line, flush=True)


def _make_environment(reason: str) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"{reason}: creating .venv with Python {version} ({sys.executable}), about 5 s.")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], cwd=ROOT, check=False)
    if made.returncode:
        raise pip.InstallError(f"{sys.executable} cannot create a virtual environment; see its last lines")


def _install_torch(constraints: Path, *, with_cuda: bool) -> None:
    pinned = torch.pinned(constraints)
    if state.version(VENV, "torch") == pinned:
        say(f"Step 1 of 2: torch {pinned} is installed.")
        return
    choice = torch.choose(os.environ.get("TORCH_INDEX", torch.AUTO), with_cuda=with_cuda)
    say(f"Step 1 of 2: torch {pinned}. {choice.why}")
    index = ("--extra-index-url", choice.index) if choice.index else ()
    pip.run(VENV, "install", "--no-deps", *index, f"torch=={pinned}", with_bar=True)


def _size(missing: list[str], *, with_cuda: bool) -> str:
    sizes = [SIZES[part] for part in missing] or ["what has changed since the last time"]
    return "; ".join([*sizes, CUDA_SIZE] if with_cuda and "serve" in missing else sizes)


def _named_python() -> tuple[int, int] | None:
    """The version that .venv must have if PYTHON is set."""
    return sys.version_info[:2] if os.environ.get("PYTHON") else None


def _fingerprint() -> str:
    """A digest of the checkout's path and of the files that say what to install."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch("serve|dev|cuda", sys.argv[1]):
        sys.exit("usage: sh tools/install/run.sh serve|dev|cuda")
    sys.exit(main(sys.argv[1]))
