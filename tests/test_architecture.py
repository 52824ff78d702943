"""Rules of the architecture that the contracts of import-linter (`make lint`, pyproject.toml) cannot express."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder -> the most lines a file may have.
LONGEST = {"service": 350, "model": 350, "client": 350, "tools": 400, "bench": 400, "training": 400, "tests": 400}
# Package -> the most Python files it may have itself, without those of its subpackages.
MOST_FILES = {"service": 10, "model": 12}
MOST_FILES_ELSEWHERE = 15  # 14 modules and __init__.py
PACKAGES = sorted(path.parent for name in ("service", "model", "client") for path in (ROOT / name).rglob("__init__.py"))
# Modules of `model` that the HTTP process and the command line use.
TORCH_FREE = (
    "commands.image_folder",
    "config",
    "errors",
    "labels",
    "loading.hub",
    "loading.released",
    "loading.source",
    "preprocessing.recipe",
    "preprocessing.resize",
    "reference_config",
    "shipped",
)


def relative(path: Path) -> str:
    """A path as a test names it: relative to the checkout, with slashes."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "code",
    [
        "import model",
        "from model import VimConfig; VimConfig.from_reference(embed_dim=192)",
        "from model import Preprocess; Preprocess()",
        "from model import Labels; Labels.imagenet()",
        *(f"import model.{name}" for name in TORCH_FREE),
        "import service.server.server",
        "import service.server.prefork.child",
        "from service.app import create_app; from service.settings import Settings; create_app(Settings())",
    ],
)
def test_torch_stays_unloaded(code: str) -> None:
    """The HTTP process and the torch-free modules of `model` load neither torch, numba, triton nor safetensors."""
    heavy = ("torch", "numba", "triton", "safetensors")
    check = f"{code}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout


def test_files_are_short() -> None:
    """No Python file has more lines than its folder allows."""
    lengths = {
        relative(path): (len(path.read_text(encoding="utf-8").splitlines()), longest)
        for folder, longest in LONGEST.items()
        for path in (ROOT / folder).rglob("*.py")
    }

    assert {} == {name: length for name, (length, longest) in lengths.items() if length > longest}


@pytest.mark.parametrize("package", PACKAGES, ids=relative)
def test_packages_are_small(package: Path) -> None:
    """No package has more Python files than a reader can survey."""
    files = sorted(path.name for path in package.glob("*.py"))
    most = MOST_FILES.get(relative(package), MOST_FILES_ELSEWHERE)

    assert len(files) <= most, f"{len(files)} files, at most {most}: {', '.join(files)}"
