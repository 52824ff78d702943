"""The Makefile's targets are documented, and say what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import __main__ as clients
from tests.clients import environments

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_contributing_lists_every_target() -> None:
    """Each target of `make help` but help itself."""
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)) - {"help"}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = {name for line in re.findall(r"^make ([a-z -]+?) *#", contributing, re.MULTILINE) for name in line.split()}

    assert targets == listed


def test_clean_removes_every_environment() -> None:
    """The folders that other targets make."""
    clean = MAKEFILE.partition("\nclean:")[2]

    assert [] == [name for name in ("$(VENV)", ".ray", ".clients", "build", ".hypothesis") if f" {name} " not in clean]


def dry(target: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run a target with this PATH and an installation that is up to date."""
    arguments = ["make", target, "INSTALL=:", "PIP=true", "OPTED_IN=true"]
    return subprocess.run(arguments, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("target", "program"), [("test-page", "chromium"), ("image", "docker"), ("image-cuda", "docker")]
)
def test_a_missing_program_is_named(target: str, program: str, tmp_path: Path) -> None:
    """The target fails before it does anything, with the way to get the program."""
    for tool in ("make", "sh"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = dry(target, str(tmp_path))

    assert 2 == done.returncode
    assert f"{program} is not installed: " in done.stderr


def test_what_a_target_needs_is_installed_first() -> None:
    """`serve` installs what serving needs, every other target everything; both pass on what was chosen."""
    for target, profile in (("serve", "serve"), ("test", "dev"), ("lint", "dev"), ("install-cuda", "cuda")):
        command = ["make", "--no-print-directory", "--dry-run", target, "PYTHON=python3.12", "TORCH_INDEX=https://mine"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert said.startswith(f'PYTHON="python3.12" TORCH_INDEX="https://mine" sh tools/install/run.sh {profile}\n'), (
            said
        )


def test_skips_of_an_opt_in_suite_are_failures(tmp_path: Path) -> None:
    """With the plugin a skipped test or module fails the run, and its reason is shown."""
    test = tmp_path / "test_it.py"
    command = [sys.executable, "-m", "pytest", "-p", "tests.no_skips", "-p", "no:cacheprovider", "-ra", str(test)]
    shown = []
    module = "import pytest\npytest.importorskip('nothing_of_this_name')"
    for code in ("def test_a(): pass", "import pytest\ndef test_a(): pytest.skip('no Chromium')", module):
        test.write_text(code)
        shown.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False))

    assert [0, 1, 1] == [done.returncode for done in shown]
    assert "no Chromium" in shown[1].stdout
    assert "1 skipped: this suite counts them as failed" in shown[2].stdout


def test_an_option_that_would_do_nothing_is_refused() -> None:
    """`--minutes` without the one scenario whose length it is."""
    command = [sys.executable, "-m", "tests.e2e.chaos", "--minutes", "1", "--only", "kills"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 2 == done.returncode
    assert "--minutes is the length of random_faults only" in done.stderr


def test_clients_run_without_what_another_environment_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without npm the Node clients are named as not built, and the others are."""
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(environments, "_python", lambda *_: None)
    folders, not_built = clients.built(["none", "core", "node"])

    assert ["core"] == list(folders)
    assert {"node": "npm is not installed: apt-get install npm"} == not_built
