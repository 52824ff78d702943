"""The two wheels, built from a copy of the checkout and installed into an empty virtual environment.

The environment takes the dependencies from the running one, so nothing is downloaded. The programs run in a folder
with files called model.py and service.py, which must not be imported instead of the packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SERVER_FILES = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "service",
    "model",
    "models/demo",
    "examples/images",
    "examples/photos",
)
TIMEOUT_S = 240
DECOY = 'raise ImportError("a file of the current folder was imported instead of the installed package")\n'
CLASSIFY = """
import sys
from vim_client import Client

with Client(sys.argv[1], tries=60) as client:
    for path in sys.argv[2:]:
        print(client.classify(path).predictions[0].label)
"""


@dataclass(frozen=True)
class Wheels:
    """The built wheels."""

    server: Path
    client: Path


@dataclass(frozen=True)
class Installation:
    """A virtual environment with both wheels, and the folder with the decoys in which its programs run."""

    environment: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables, without those of the server and without a path of Python."""
        mine = {name: text for name, text in os.environ.items() if not name.startswith(("VIM_", "PYTHON"))}
        return mine | {"VIM_DEVICE": "cpu", "VIM_CACHE_DIR": str(self.environment / "cache")}

    def command(self, program: str, *arguments: str) -> list[str]:
        """A program of the environment with its arguments."""
        return [str(self.environment / "bin" / program), *arguments]

    def run(self, program: str, *arguments: str) -> str:
        """Run a program in the folder with the decoys to its end; returns what it prints."""
        done = subprocess.run(
            self.command(program, *arguments),
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def shipped(self) -> Path:
        """The folder with the installed data."""
        (found,) = self.environment.glob("lib/python*/site-packages/model/data")
        return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Both wheels, built from copies so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in SERVER_FILES:
        _copy(ROOT / name, folder / "server" / name)
    _copy(ROOT / "client", folder / "client")
    return Wheels(_built(folder / "server", folder / "dist"), _built(folder / "client", folder / "dist"))


@pytest.fixture(scope="module")
def installed(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Both wheels in a virtual environment of their own."""
    folder = tmp_path_factory.mktemp("installed")
    environment, decoys = folder / "venv", folder / "decoys"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheels.server), str(wheels.client)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    decoys.mkdir()
    for name in ("model.py", "service.py"):
        (decoys / name).write_text(DECOY)
    return Installation(environment, decoys)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    else:
        shutil.copyfile(source, target)


def _built(source: Path, target: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--wheel-dir", str(target)]
    command = [*pip, "--no-deps", "--no-build-isolation", "--no-index", str(source)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    (found,) = target.glob(f"vim_{source.name}-*.whl")
    return found


def _names(wheel: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def _requirements(wheel: Path) -> set[str]:
    """The names of the packages that a wheel requires without extras."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = message_from_bytes(file.read(name)).get_all("Requires-Dist") or []
    return {re.split(r"[^\w-]", line)[0] for line in lines if "extra ==" not in line}


def _sources(folder: Path) -> set[str]:
    """The Python files below a package, as a wheel names them."""
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.py")}


def test_the_server_wheel_holds_both_packages_and_their_data(wheels: Wheels) -> None:
    """The wheel holds every module of `service` and `model`, the page, the demo model and the samples."""
    data = {f"service/api/page/{path.name}" for path in (ROOT / "service" / "api" / "page").iterdir()}
    for name, folder in (("samples", "images"), ("photos", "photos")):
        data |= {f"model/data/{name}/{path.name}" for path in (ROOT / "examples" / folder).iterdir()}
    data |= {f"model/data/demo/{name}.json" for name in ("config", "labels", "preprocess", "in_domain")}
    data |= {"model/data/demo/model.safetensors", "model/data/demo/README.md", "model/imagenet1k.tsv"}
    data |= {"model/backends/triton/tiles.json"}

    assert _sources(ROOT / "service") | _sources(ROOT / "model") | data == _names(wheels.server)


def test_the_client_wheel_needs_only_httpx_and_numpy(wheels: Wheels) -> None:
    """The client wheel holds `vim_client` with its type marker and requires two packages."""
    assert _sources(ROOT / "client" / "vim_client") | {"vim_client/py.typed"} == _names(wheels.client)
    assert {"httpx", "numpy"} == _requirements(wheels.client)


def test_the_command_classifies_beside_decoys(installed: Installation) -> None:
    """`vim-server classify` loads the shipped model, whatever model.py and service.py lie in the current folder."""
    samples = {one["file"]: one["predicted"] for one in _manifest(installed)[:2]}
    paths = [str(installed.shipped / "samples" / name) for name in samples]
    lines = installed.run("vim-server", "classify", "--json", *paths).splitlines()

    assert [*samples.values()] == [json.loads(line)["predictions"][0]["label"] for line in lines]


def test_the_modules_run_as_programs(installed: Installation) -> None:
    """`python -m service` and `python -m model` run as installed."""
    about = installed.run("python", "-P", "-m", "model", "inspect", "--json", "demo")

    assert str(installed.shipped / "demo" / "model.safetensors") == json.loads(about)["file"]
    assert installed.run("python", "-P", "-m", "service", "--version") == installed.run("vim-server", "--version")


def test_the_command_sets_the_variable_for_numpy_first(installed: Installation) -> None:
    """Loading the entry point of `vim-server` sets NUMPY_MADVISE_HUGEPAGE and does not import numpy."""
    code = (
        "import os, sys; from importlib.metadata import entry_points\n"
        "(point,) = entry_points(group='console_scripts', name='vim-server'); point.load()\n"
        "print('numpy' in sys.modules, os.environ['NUMPY_MADVISE_HUGEPAGE'])"
    )

    assert "False 0\n" == installed.run("python", "-P", "-c", code)


def test_a_server_with_two_http_processes_answers_the_client_beside_decoys(
    installed: Installation, tmp_path: Path
) -> None:
    """The HTTP processes and the device process import the packages; a relative VIM_MODEL is of the current folder."""
    shutil.copytree(installed.shipped / "demo", installed.folder / "weights")
    samples = {str(installed.shipped / "samples" / one["file"]): one["predicted"] for one in _manifest(installed)}
    with _serving(installed, tmp_path / "server.log") as url:
        labels = installed.run("python", "-c", CLASSIFY, url, *samples).splitlines()
        page = httpx.get(url, headers={"Accept": "text/html"})
        listed = httpx.get(f"{url}/samples").json()

    assert [*samples.values()] == labels
    assert "<title>" in page.text
    assert _manifest(installed, "photos") == listed


def _manifest(installed: Installation, folder: str = "samples") -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((installed.shipped / folder / "manifest.json").read_text())
    return found


@contextmanager
def _serving(installed: Installation, log: Path) -> Iterator[str]:
    """The address of a server; it is told to end afterwards, and must end with status 0."""
    settings = {"VIM_HTTP_WORKERS": "2", "VIM_PORT": "0", "VIM_HOST": "127.0.0.1", "VIM_MODEL": "weights"}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            installed.command("vim-server", "serve"),
            cwd=installed.folder,
            env=installed.variables | settings,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield _address(process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
