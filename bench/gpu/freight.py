"""Collect the files for a machine without a network: python -m bench.gpu.freight --golden ../shared/golden

Puts into .carry, which git ignores, a copy of the golden data, the source archives of the baseline, and wheels of what
the service imports and the machine lacks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.build import EXTENSIONS, ROOT

CARRIED = Path(".carry")
GOLDEN = ("full", "manifest.json", "make_weights.py")
ARCHIVES = ("mamba-ssm==2.3.2.post1", "causal-conv1d==1.7.0")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
# Without these the archives' build files need nvcc even for their metadata.
NO_CUDA = {f"{name}_{what}_BUILD": "TRUE" for name in ("MAMBA", "CAUSAL_CONV1D") for what in ("FORCE", "SKIP_CUDA")}
MOST_BYTES = 64 << 20
PYTHON = (3, 12)  # of the machine
# Packages that the service imports and the machine does not have.
WHEELS = (
    "fastapi",
    "fastapi-offline",
    "httptools",
    "msgspec",
    "opentelemetry-api",
    "orjson",
    "pydantic",
    "pydantic-core",
    "python-multipart",
    "simplejpeg",
    "starlette",
    "typing-inspection",
    "annotated-types",
    "uvicorn",
)


def main() -> None:
    """Fill the folder, and print the remaining problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="the golden data; without it those checks are left out")
    parser.add_argument("--to", type=Path, default=CARRIED)
    options = parser.parse_args()
    if options.golden:
        copy_golden(options.golden, options.to / "golden")
    for command in downloads(options.to):
        subprocess.run(command, env=os.environ | NO_CUDA, cwd=ROOT, check=True)
    print("\n".join(weigh(options.to).problems) or "complete")


def copy_golden(source: Path, target: Path) -> None:
    """Copy the files that the checks read, without their permissions, which may forbid writing."""
    for file in (file for name in GOLDEN for file in [source / name, *(source / name).rglob("*")] if file.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def downloads(to: Path) -> list[list[str]]:
    """Return pip's commands: archives as they are, wheels for the Python of the machine at our own versions."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
    machine = ["--python-version", ".".join(map(str, PYTHON)), "--implementation", "cp"]
    machine += [word for name in PLATFORMS for word in ("--platform", name)]
    wheels = [*pip, "--only-binary", ":all:", *machine, "-c", "constraints.txt", "-d", str(to.resolve() / "wheels")]
    archives = [*pip, "--no-binary", ":all:", "--no-build-isolation", "-d", str(to.resolve())]
    return [[*archives, *ARCHIVES], [*wheels, *WHEELS]]


@dataclass(frozen=True, slots=True)
class Freight:
    """The bytes that are sent, and the errors."""

    tree: int
    carried: dict[str, int]
    problems: list[str]


def weigh(carried: Path) -> Freight:
    """Weigh the working tree and the folder that is carried."""
    named = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(named, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tree = sum(path.lstat().st_size for name in listed.split("\0") if name and (path := ROOT / name).is_file())
    sizes = {path.name: _bytes(path) for path in sorted(carried.glob("*"))}
    problems = _missing(carried)
    if tree + sum(sizes.values()) > MOST_BYTES:
        problems.append(f"tree and carried files are more than {MOST_BYTES >> 20} MiB")
    return Freight(tree, sizes, problems)


def _missing(carried: Path) -> list[str]:
    wanted = {extension.archive: len(list(carried.glob(extension.archive))) for extension in EXTENSIONS.values()}
    problems = [f"{found} files {name} in {carried}, one is needed" for name, found in wanted.items() if found != 1]
    wheels = [path.name for path in (carried / "wheels").glob("*.whl")]
    present = {name.partition("-")[0].replace("_", "-").lower() for name in wheels}
    problems += [f"no wheel of {name} in {carried / 'wheels'}" for name in WHEELS if name not in present]
    problems += [f"{name} is not for Python {PYTHON[0]}.{PYTHON[1]}" for name in wheels if not fits_python(name)]
    return problems


def fits_python(wheel: str) -> bool:
    """Return whether a wheel is for the machine, by its name: Linux on x86-64, its Python or any."""
    python, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    if platform != "any" and not re.search(r"linux\w*_x86_64", platform):
        return False
    version = re.fullmatch(r"cp3(\d+)", python)
    if version is None:
        return "py3" in python.split(".")
    return int(version[1]) == PYTHON[1] or (abi == "abi3" and int(version[1]) < PYTHON[1])


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
