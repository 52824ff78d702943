"""Imports point one way, heavy libraries stay where they belong, and files stay short enough to read.

The order of the layers is read from ARCHITECTURE.md, so that the document and the rule cannot differ.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "model")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Libraries -> the modules that may import them.
ALLOWED = {
    ("torch", "safetensors", "numba"): r"model\..+|service\.worker",
    ("triton",): r"model\.gpu\..+",
    ("PIL",): r"model\.(preprocess|resize|evaluate)|service\.(images|client_images)",
    ("simplejpeg",): r"service\.jpeg",
    ("huggingface_hub", "httpx2"): r"model\.hub",
    ("httpx",): r"service\.(client|client_http|commands\.remote)",
    ("prometheus_client",): r"service\.(metrics|counting)",
    ("opentelemetry",): r"service\.tracing",
    ("uvicorn",): r"service\.(server|protocol)",
    ("pydantic_settings",): r"service\.settings",
    ("python_multipart",): r"service\.multipart",
    ("orjson",): r"service\.(json_body|outputs)",
    ("fastapi", "starlette"): r"service\.(app|api\.\w+|inputs|outputs|middleware)",
}
# Lazily, from inside a function, against the order; with the reason.
EXCEPTIONS = {
    ("model.config", "model.reference_config"),  # VimConfig.from_reference is the class's public door to a translator
}
# The modules that ARCHITECTURE.md lists as without torch.
TORCH_FREE = (
    "config",
    "errors",
    "hub",
    "labelled",
    "labels",
    "names",
    "preprocess",
    "reference_kwargs",
    "resize",
    "source",
)
LONGEST = {"service": 350, "model": 350, "tools": 400, "bench": 400, "tests": 400}


def module_name(path: Path) -> str:
    """service/api/v1.py -> service.api.v1; a package's __init__ is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
ROOTS = {"service", "service.api", "model"}  # packages that hold names and no work


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as full names."""
    return set(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & MODULES.keys() or {str(node.module)}


def layers() -> list[list[str]]:
    """The rows of the block in ARCHITECTURE.md, highest first."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- layers -->\n```text\n(.*?)```\n<!-- /layers -->", text, re.DOTALL)
    assert block is not None, "ARCHITECTURE.md has no <!-- layers --> block"
    return [line.split() for line in block[1].splitlines() if line]


LEVEL = {module: level for level, row in enumerate(layers()) for module in row}


def test_every_module_has_its_layer() -> None:
    """A new module is entered in the layers of ARCHITECTURE.md, and a deleted one leaves them."""
    assert sorted(MODULES.keys() - ROOTS) == sorted(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ROOTS))
def test_imports_point_down(module: str) -> None:
    """A module imports only what stands below it in the layers of ARCHITECTURE.md."""
    known = {name for name in imports(MODULES[module]) if name in LEVEL}
    wrong = {name for name in known if LEVEL[name] <= LEVEL.get(module, 0) and (module, name) not in EXCEPTIONS}

    assert set() == wrong


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_packages_know_nothing_of_tests_and_tools(path: Path) -> None:
    """And `model` knows nothing of `service`."""
    foreign = {"tests", "tools", "bench"} | ({"service"} if path.is_relative_to(ROOT / "model") else set())

    assert set() == {name for name in imports(path) if name.partition(".")[0] in foreign}


def test_the_device_process_is_imported_by_nobody() -> None:
    """`service.devices.worker` is started as a program: importing it would bring torch along."""
    assert [] == [name for name, path in MODULES.items() if "service.devices.worker" in imports(path)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_library_has_its_file(module: str) -> None:
    """One library, one file: the rest can be tested without it."""
    used = {name.partition(".")[0] for name in imports(MODULES[module])}
    misplaced = {
        library
        for libraries, place in ALLOWED.items()
        for library in libraries
        if library in used and not re.fullmatch(place, module)
    }

    assert set() == misplaced


@pytest.mark.parametrize(
    "code",
    [
        "import model",
        "from model import VimConfig; VimConfig.from_reference(embed_dim=192)",
        "from model import Preprocess; Preprocess()",
        "from model import Labels; Labels.imagenet()",
        *(f"import model.{name}" for name in TORCH_FREE),
        "import service.server.server",
        "from service.app import create_app; from service.settings import Settings; create_app(Settings())",
    ],
)
def test_torch_stays_unloaded(code: str) -> None:
    """The HTTP process, and whoever only wants a configuration, never pays for torch."""
    heavy = ("torch", "numba", "triton", "safetensors")
    check = f"{code}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout


def test_files_are_short() -> None:
    """The house rule is about 300 lines; beyond these numbers a file has to be cut."""
    lengths = {
        path.relative_to(ROOT).as_posix(): (len(path.read_text(encoding="utf-8").splitlines()), longest)
        for folder, longest in LONGEST.items()
        for path in (ROOT / folder).rglob("*.py")
    }

    assert {} == {name: length for name, (length, longest) in lengths.items() if length > longest}
