"""The parts of a run, in order, with the seconds that each may take, and what travels to the machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import checks, facts, faults, kernels, models, profile, served, sweep
from bench.gpu.build import EXTENSIONS, ROOT
from bench.gpu.cases import Plan
from bench.gpu.entry import CHECK, HEADLINE, KERNELS, MODELS, SERVICE, SWEEP, Entry

TOTAL_S = 480
MOST_BYTES = 64 << 20
PYTHON = (3, 12)  # of the machine
# What the service imports and the machine does not have.
WHEELS = (
    "fastapi",
    "fastapi-offline",
    "httptools",
    "msgspec",
    "opentelemetry-api",
    "orjson",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "python-dotenv",
    "python-multipart",
    "simplejpeg",
    "starlette",
    "typing-inspection",
    "annotated-types",
    "uvicorn",
)


@dataclass(frozen=True, slots=True)
class Part:
    """Its entries are run in order in one process, or in the next one where that ends; `warm` processes compile first.

    Each of these runs its share of the entries and forgets the results: Triton keeps what was compiled.
    """

    name: str
    seconds: float
    entries: Callable[[Plan], list[Entry]]
    warm: int = 0
    warm_seconds: float = 0

    def of(self, plan: Plan) -> list[Entry]:
        """Return its entries; in a dry run with the faults that were asked for."""
        found = self.entries(plan)
        return [faults.applied(entry) for entry in found] if plan.dry_run else found


def _facts_and_checks(plan: Plan) -> list[Entry]:
    return facts.entries(plan) + checks.entries(plan)


def _kernels_and_counters(plan: Plan) -> list[Entry]:
    return kernels.entries(plan) + profile.entries(plan)


PARTS = (
    Part(CHECK, 135, _facts_and_checks, warm=12, warm_seconds=35),
    Part(HEADLINE, 75, models.headline),
    Part(KERNELS, 62, _kernels_and_counters),
    Part(SWEEP, 45, sweep.entries, warm=12, warm_seconds=30),
    Part(MODELS, 50, models.entries),
    Part(SERVICE, 110, served.entries),
)


@dataclass(frozen=True, slots=True)
class Freight:
    """Bytes that travel, and what is wrong with them."""

    tree: int
    carried: dict[str, int]
    problems: list[str]


def freight(carried: Path) -> Freight:
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
    """Return whether a wheel's name says that it is for the machine: Linux on x86-64, its Python or any."""
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


def described(plan: Plan, weighed: Freight) -> str:
    """Return the plan as text: parts, entries, seconds, what travels."""
    lines = []
    for part in PARTS:
        entries = part.of(plan)
        expected = sum(entry.seconds for entry in entries)
        warm = f", {part.warm} processes compile for at most {part.warm_seconds:.0f} s" if part.warm else ""
        lines.append(f"{part.name}: at most {part.seconds:.0f} s, {len(entries)} entries, {expected:.0f} s{warm}")
        lines += [f"    {entry.seconds:5.1f} s  {entry.name}" for entry in entries]
    lines.append(f"all parts: at most {sum(part.seconds for part in PARTS):.0f} s of {TOTAL_S}")
    lines.append("beside them: " + ", ".join([*EXTENSIONS, served.WHEELS]))
    lines.append(f"travels: tree {weighed.tree:,} bytes")
    lines += [f"    {size:12,} bytes  {name}" for name, size in weighed.carried.items()]
    lines.append(f"    {weighed.tree + sum(weighed.carried.values()):12,} of {MOST_BYTES:,} bytes")
    return "\n".join([*lines, *(f"problem: {text}" for text in weighed.problems)])
