"""What can be checked of the dependencies without a network: `python -m tools.audit`, part of `make lint`.

Every version is pinned exactly, everything that the pinned ones bring along is pinned as well, what is installed is
what is pinned, and nothing is imported that is not declared. Known vulnerabilities need the network: `make audit`.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OURS = ("service", "model", "vim_client", "tools", "bench", "training", "tests", "deploy", "examples")
CLIENT = ROOT / "client"
CONSTRAINTS = ("constraints.txt", "constraints-cpu.txt")
# Packages that we import, and the declared ones (any of them) that need them.
_BROUGHT = {
    "anyio": "fastapi httpx",
    "annotated-types": "pydantic",
    "idna": "httpx2",
    "llvmlite": "numba",
    "packageurl-python": "cyclonedx-python-lib",
    "packaging": "huggingface-hub",
    "starlette": "fastapi",
}


def pins(*files: Path) -> tuple[dict[str, str], list[str]]:
    """Version by name, and what is wrong with the lines that pin none exactly."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line or line.startswith(("#", "-c ")):
                continue
            if exact := re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line):
                found[canonicalize_name(exact[1])] = exact[2]
            else:
                wrong.append(f"{file.name}: {line!r} is no exact version")
    return found, wrong


def declared(pyproject: Path) -> dict[str, set[str]]:
    """Names of the dependencies, by extra; those of the program itself under ''."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: {canonicalize_name(Requirement(one).name) for one in group} for name, group in groups.items()}


def unpinned(roots: set[str], pinned: dict[str, str]) -> Iterator[str]:
    """What these and all that they need lack of being pinned and installed as pinned."""
    todo, seen = list(roots), set(roots)
    while todo:
        name = todo.pop()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed here
        if name not in pinned:
            yield f"{name} is not pinned"
        elif package.version.partition("+")[0] != pinned[name]:
            yield f"{name} is pinned to {pinned[name]}, but {package.version} is installed"
        needed = {canonicalize_name(one.name) for one in map(Requirement, package.requires or ()) if _applies(one)}
        todo += needed - seen
        seen |= needed


def undeclared(names: set[str], sources: Iterator[Path]) -> Iterator[str]:
    """Imports of installed packages that no dependency names."""
    packages = metadata.packages_distributions()
    for source in sources:
        for module in sorted(_imported(source) - set(OURS)):  # some wheels bring a top-level `tests` along
            owners = {canonicalize_name(owner) for owner in packages.get(module, ())}
            brought = {bringer for owner in owners for bringer in _BROUGHT.get(owner, "").split()}
            if owners and not owners & names and not brought & names:
                yield f"{source.relative_to(ROOT)} imports {module}, which pyproject.toml does not declare"


def problems() -> list[str]:
    """Everything that is wrong; empty when nothing is."""
    pinned, wrong = pins(*(ROOT / name for name in CONSTRAINTS))
    groups = declared(ROOT / "pyproject.toml")
    every = set().union(*groups.values()) - {"vim-server"}
    programs = (path for package in OURS for path in (ROOT / package).rglob("*.py"))
    client = set().union(*declared(CLIENT / "pyproject.toml").values())
    return [
        *wrong,
        *unpinned(groups[""], pinned),
        *undeclared(every, programs),
        *undeclared(client, CLIENT.rglob("*.py")),
    ]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _imported(source: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


if __name__ == "__main__":
    for problem in (found := problems()):
        print(problem, file=sys.stderr)
    sys.exit(bool(found))
