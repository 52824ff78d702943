"""The image's program run as the container runs it: its files, its environment, its user, its writable paths, its end.

Where the tests run as root with namespaces, the file system is really read-only and the user really a number.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.dockerfile import build_app, environment, last
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.slow
START_TIMEOUT_S = 120
# Nothing but the two directories can be written: they are made mounts of their own before the root is made read-only.
# The right to read everything stays, since the interpreter of a developer may lie in root's home.
_LOCKED_DOWN = """
for directory in "$WRITABLE_1" "$WRITABLE_2"; do mount --bind "$directory" "$directory"; done
mount -o remount,bind,ro /
exec setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs \
    --inh-caps -all,+dac_read_search --ambient-caps -all,+dac_read_search --bounding-set -all,+dac_read_search "$@"
"""


@dataclass
class Container:
    """A directory that stands for the image, and how to run a command in it."""

    app: Path
    cache: Path
    temporary: Path
    port: int
    user: str

    @property
    def environ(self) -> dict[str, str]:
        """The image's ENV at this place, plus what `docker run -e` would add; nothing from outside."""
        places = {"/cache": str(self.cache), "/tmp": str(self.temporary), "/app": str(self.app)}
        image = {name: _moved(text, places) for name, text in environment("cpu").items() if name != "PATH"}
        given = {"VIM_MODEL": str(self.app / "tiny"), "VIM_PORT": str(self.port), "VIM_THREADS": "1"}
        ours = {"PATH": os.environ["PATH"], "TMPDIR": str(self.temporary)}
        return image | ours | given | {"WRITABLE_1": str(self.cache), "WRITABLE_2": str(self.temporary)}

    def command(self, *arguments: str) -> list[str]:
        """The command, locked down where this machine can; VIM_HOST stays 0.0.0.0 as in the image."""
        program = [sys.executable if word == "python" else word for word in arguments]
        if not _can_lock_down():
            return program
        user, _, group = self.user.partition(":")
        script = _LOCKED_DOWN.format(user=user, group=group or "0")
        return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", *program]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self.command(*arguments), cwd=self.app, env=self.environ, capture_output=True, text=True, check=False
        )


def _moved(text: str, places: dict[str, str]) -> str:
    for place, here in places.items():
        if text == place or text.startswith(f"{place}/"):
            return here + text.removeprefix(place)
    return text


def _can_lock_down() -> bool:
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        return False
    mount = ["unshare", "--mount", "--propagation", "private", "mount", "-o", "remount,bind,ro", "/"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


# The image's own number, and one that a cluster made up (OpenShift: group 0).
@pytest.fixture(scope="module", params=[last("cpu", "USER"), "1000680000"])
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """The image's files with a tiny model beside them."""
    root = tmp_path_factory.mktemp("container")
    for above in (root, *root.parents[:2]):
        above.chmod(0o755)  # pytest's directories are closed to others
    app, cache, temporary = root / "app", root / "cache", root / "tmp"
    for directory in (app, cache, temporary):
        directory.mkdir()
    temporary.chmod(0o1777)
    if os.geteuid() == 0:  # as the Dockerfile does
        os.chown(cache, 10001, 0)
        cache.chmod(0o770)
    build_app(app)
    write_tiny_model(app / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Container(app, cache, temporary, port, request.param)


def test_holds_what_it_needs_and_no_more(container: Container) -> None:
    """The image holds the two packages, their data and the licence, and no compiled files."""
    names = {path.name for path in container.app.iterdir()} - {"tiny", "models", "examples"}
    assert names == {"LICENSE", "model", "service"}
    assert not [path for path in container.app.rglob("*") if "__pycache__" in path.parts]


def test_the_lock_down_is_real(container: Container) -> None:
    """In the locked-down container only the two writable directories can be written."""
    if not _can_lock_down():
        pytest.skip("needs root with mount namespaces")
    tries = "import pathlib, sys; pathlib.Path(sys.argv[1], 'written').touch()"
    refused = container.run("python", "-c", tries, str(container.app))
    assert "Read-only file system" in refused.stderr
    for directory in (container.cache, container.temporary):
        assert container.run("python", "-c", tries, str(directory)).returncode == 0
    assert container.run("python", "-c", "import os; print(os.geteuid())").stdout.strip() in container.user


def test_serves_is_healthy_and_ends_with_0(container: Container) -> None:
    """The container becomes healthy, answers, ends with 0 on SIGTERM, and then fails its health check."""
    for process in _serving(container):
        _wait_until_healthy(container, process)
        request = urllib.request.Request(f"http://127.0.0.1:{container.port}/v1/classify", data=photo())
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
    assert _healthcheck(container).returncode == 1


def test_other_commands_go_after_the_image_name(container: Container) -> None:
    """The entry point accepts other arguments than CMD, also in another directory."""
    shown = container.run(*json.loads(last("cpu", "ENTRYPOINT")), "--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    elsewhere = subprocess.run(
        container.command("python", "-m", "service", "--version"),
        cwd="/",
        env=container.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.stdout == shown.stdout


def test_a_mistake_in_a_setting_ends_it_at_once(container: Container) -> None:
    """An unknown VIM_ variable ends the container with status 2 and a message that names it."""
    command = container.command(*json.loads(last("cpu", "ENTRYPOINT")), *json.loads(last("cpu", "CMD")))
    environ = container.environ | {"VIM_PROT": "80"}
    run = subprocess.run(command, cwd=container.app, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "VIM_PROT is not a setting; did you mean VIM_PORT?" in run.stderr


def _serving(container: Container) -> Iterator[subprocess.Popen[bytes]]:
    """The server as ENTRYPOINT and CMD start it; its log is shown when the test fails."""
    command = container.command(*json.loads(last("cpu", "ENTRYPOINT")), *json.loads(last("cpu", "CMD")))
    print("$", shlex.join(command))
    with subprocess.Popen(command, cwd=container.app, env=container.environ) as process:
        try:
            yield process
        finally:
            process.kill()


def _healthcheck(container: Container) -> subprocess.CompletedProcess[str]:
    health = last("cpu", "HEALTHCHECK")
    return container.run(*json.loads(health[health.index("CMD") + 3 :]))


def _wait_until_healthy(container: Container, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while (said := _healthcheck(container)).returncode != 0:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < end, said
    assert said.stdout.startswith("200 ")
