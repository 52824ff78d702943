"""What `make serve` and `make test` install: nothing here is installed, and no index is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import urllib.error
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.install import __main__ as install
from tools.install import pip, state, torch
from tools.lock_image import needs

ROOT = Path(__file__).resolve().parents[2]
FINDER = ROOT / "tools" / "install" / "run.sh"


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose Python is the running one, and a checkout around it."""
    place = tmp_path / ".venv"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / "lib" / "python3" / "site-packages").mkdir(parents=True)
    monkeypatch.setattr(install, "VENV", place)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    for name in install.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("torch==2.13.0\n")
    monkeypatch.setattr(state, "unusable", lambda *_, **__: None)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    monkeypatch.delenv("PYTHON", raising=False)
    return place


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip would be called with."""
    found: list[str] = []
    monkeypatch.setattr(pip, "run", lambda _, *arguments, **__: found.append(" ".join(arguments)))
    monkeypatch.setattr(torch, "unreachable", lambda _: "")
    monkeypatch.setattr(torch, "has_driver", lambda: False)
    return found


def installed(venv: Path, name: str, version: str, size: int = 3) -> Path:
    """A package of one file in the environment; its metadata."""
    packages = venv / "lib" / "python3" / "site-packages"
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir()
    (packages / f"{name}.py").write_text("x=1")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(f"{name}.py,sha256=x,{size}\n{info.name}/RECORD,,\n")
    return info


def test_serving_needs_neither_tests_nor_tools(venv: Path, commands: list[str]) -> None:
    """torch first and alone, from the index for CPUs; then the program, and nothing of the development."""
    assert 0 == install.main("serve")

    assert ["install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0"] == commands[:1]
    assert [f"install --constraint {venv.parent}/constraints-cpu.txt --editable .[heic]"] == commands[1:]


def test_a_second_call_does_nothing(venv: Path, commands: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """If everything is installed, nothing is called or printed. Development contains what serving needs."""
    install.main("serve")
    commands.clear()
    capsys.readouterr()
    assert 0 == install.main("serve")
    assert ([], "") == (commands, capsys.readouterr().out)

    installed(venv, "torch", "2.13.0+cpu")
    assert 0 == install.main("dev")
    assert "Step 2 of 2: what tests and checks need: 68 more packages" in capsys.readouterr().out
    assert ["install --constraint", "--editable .[dev] --editable ./client"] == [
        commands[0][:20],
        commands[0].partition(".txt ")[2],
    ]
    assert 1 == len(commands)
    assert 0 == install.main("serve")
    assert 1 == len(commands)


def test_a_change_of_the_versions_is_installed_quietly(venv: Path, commands: list[str]) -> None:
    """After a change of what is to be installed, only what changes is said."""
    install.main("serve")
    (venv.parent / "constraints.txt").write_text("numpy==9\n")
    install.main("serve")

    assert "--quiet" not in commands[1]
    assert "install --quiet" in commands[3]


def test_an_interrupted_installation_is_continued(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], commands: list[str]
) -> None:
    """Packages whose files are not all there are installed again, the others are kept."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pip, "run", interrupted)
        assert 130 == install.main("serve")
    whole, cut = installed(venv, "whole", "1"), installed(venv, "cut", "1", size=4)
    without_record = installed(venv, "without", "1")
    (without_record / "RECORD").unlink()
    remains = whole.with_name("~orch")
    remains.mkdir()
    capsys.readouterr()

    assert 0 == install.main("serve")

    assert "was interrupted; continuing" in capsys.readouterr().out
    assert [True, False, False, False] == [one.exists() for one in (whole, cut, without_record, remains)]
    assert not state.is_marked(venv)


def test_a_failure_of_pip_is_said_and_leaves_no_stamp(venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real pip, asked for something that it refuses without a network."""
    with pytest.raises(pip.InstallError, match="pip ended with status"):
        pip.run(venv, "install", "--no-index", "/nowhere/at-all.whl")

    assert "" == state.read_stamp(venv, "serve")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  Downloading numba-0.68.1-cp311-cp311-manylinux_2_28_x86_64.whl (3.8 MB)\n", "  numba-0.68.1 (3.8 MB)\n"),
        ("Processing /somewhere/idna-3.20-py3-none-any.whl (from vim-server==0.1.0)\n", "  idna-3.20\n"),
        ("Using cached pi_heif-1.4.0-cp311-x.whl (1.5 MB)\n", "  pi_heif-1.4.0 (1.5 MB)\n"),
        ("  Downloading idna-3.20-py3-none-any.whl.metadata (6 kB)\n", ""),
        ("Installing collected packages: a, b\n", "  unpacking and compiling 2 packages\n"),
        ("Collecting idna>=3.18\n", ""),
    ],
)
def test_progress_is_a_line_for_each_package(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pip's lines those that say that something was fetched or is unpacked."""
    pip.shown(line)
    assert expected == capsys.readouterr().out


def test_the_cpu_build_is_taken_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """From PyTorch's index if it answers, else from the configured one; both with the reason."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(torch, "unreachable", lambda _: "")
    choice = torch.choose("auto", with_cuda=False)
    assert torch.CPU_INDEX == choice.index
    assert choice.why.startswith("No NVIDIA driver was found: the CPU build")

    monkeypatch.setattr(torch, "unreachable", lambda _: "no route")
    choice = torch.choose("auto", with_cuda=False)
    assert "" == choice.index
    assert "cannot be reached (no route)" in choice.why


def test_an_index_that_is_given_is_not_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """TORCH_INDEX decides, also the empty one; with a driver no other index is added."""
    monkeypatch.setattr(torch, "unreachable", lambda _: pytest.fail("asked"))

    assert "https://mine" == torch.choose("https://mine", with_cuda=True).index
    assert "the configured package index" in torch.choose("", with_cuda=False).why
    assert "" == torch.choose("auto", with_cuda=True).index


def test_why_an_index_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A status, or the reason of the failure."""

    def failing(error: Exception) -> None:
        def opened(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("urllib.request.urlopen", opened)

    failing(urllib.error.HTTPError("https://x", 403, "no", None, None))  # type: ignore[arg-type]
    assert "status 403" == torch.unreachable("https://x")
    failing(urllib.error.URLError("no such host"))
    assert "no such host" == torch.unreachable("https://x")
    failing(TimeoutError("timed out"))
    assert "timed out" == torch.unreachable("https://x")


def test_cuda_has_its_own_versions(venv: Path, commands: list[str]) -> None:
    """`install-cuda` installs as on a machine with a GPU, where there may be none."""
    assert 0 == install.main("cuda")

    assert "install --no-deps torch==2.13.0" == commands[0]
    assert "constraints-cuda.txt" in commands[1]


def test_an_environment_that_cannot_be_used_is_made_anew(tmp_path: Path) -> None:
    """Absent, half made, of another Python than the one that was named."""
    place = tmp_path / ".venv"
    assert ".venv does not exist" == state.unusable(place, tmp_path, None)
    (place / "bin").mkdir(parents=True)
    assert ".venv is broken or incomplete" == state.unusable(place, tmp_path, None)
    (place / "bin" / "python").symlink_to("/nowhere/python")
    assert ".venv is broken or incomplete" == state.unusable(place, tmp_path, None)
    (place / "bin" / "python").unlink()
    (place / "bin" / "python").symlink_to(sys.executable)
    assert None is state.unusable(place, tmp_path, None)
    assert "PYTHON names another version" in str(state.unusable(place, tmp_path, (3, 99)))


def fake_python(folder: Path, name: str, version: str, *, venv: bool = True) -> None:
    """A program that answers as a Python of this version, and says that it was started."""
    body = (
        'case "$2" in *version_info*) echo ' + version + ";; "
        f'*ensurepip*) exit {0 if venv else 1};; *) echo "{name} runs $*";; esac\n'
    )
    (folder / name).write_text(f"#!/bin/sh\n{body}")
    (folder / name).chmod(0o755)


def find(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the finder with only these programs."""
    return subprocess.run(
        ["/bin/sh", str(FINDER), "serve"],
        env={"PATH": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_python_that_suits_is_found(tmp_path: Path) -> None:
    """The first of 3.11 to 3.14, whatever python3 is; PYTHON names another."""
    fake_python(tmp_path, "python3", "3.10")
    fake_python(tmp_path, "python3.13", "3.13")
    fake_python(tmp_path, "mine", "3.12")

    assert "python3.13 runs -m tools.install serve\n" == find(tmp_path).stdout
    assert "mine runs -m tools.install serve\n" == find(tmp_path, PYTHON="mine").stdout


def test_without_a_python_that_suits_the_message_names_what_was_looked_for(tmp_path: Path) -> None:
    """Each Python that was tried, with what is wrong with it, and how to get one."""
    fake_python(tmp_path, "python3", "3.10")
    fake_python(tmp_path, "python3.12", "3.12", venv=False)
    done = find(tmp_path)

    assert 1 == done.returncode
    assert "needs one of 3.11 3.12 3.13 3.14" in done.stderr
    for line in ("python3.11: not installed", "python3.12: has no module venv", "python3: is Python 3.10"):
        assert f"\n  {line}" in done.stderr
    assert "PYTHON=/path/to/python3.11" in done.stderr

    done = find(tmp_path, PYTHON="python3")
    assert 1 == done.returncode
    assert "\n  python3: is Python 3.10\n" in done.stderr
    assert "python3.12" not in done.stderr.partition("Install one")[0]


def test_both_programs_want_the_same_pythons() -> None:
    """The versions of the finder are those of the check of .venv, and the running one is among them."""
    (line,) = [one for one in FINDER.read_text().splitlines() if one.startswith("versions=")]
    versions = [tuple(map(int, one.split("."))) for one in line.partition("=")[2].strip('"').split()]

    assert state.SUITABLE == (versions[0], versions[-1])
    assert sys.version_info[:2] in versions
    assert os.access(FINDER, os.R_OK)


def test_serving_needs_at_most_48_packages() -> None:
    """The program, torch and what both need: as many as the line before the step says, and none for tests or traces."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [Requirement(one).name for one in [*project["dependencies"], *project["optional-dependencies"]["heic"]]]
    closure = {"vim-server"}
    while todo:
        if (name := canonicalize_name(todo.pop())) not in closure:
            closure.add(name)
            todo += [Requirement(one).name for one in needs(name)]

    assert len(closure - {"vim-server"}) <= 48
    assert f" {len(closure - {'torch'})} packages" in install.SIZES["serve"]
    assert {"torch", "pi-heif"} <= closure
    assert set() == closure & {"pytest", "ruff", "triton", "pillow-jxl-plugin", "opentelemetry-sdk", "shtab"}
