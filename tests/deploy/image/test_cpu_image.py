"""The CPU image as it is built: what is in it, and how its container starts, answers and ends (`make test-image`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import last
from tests.deploy.image.build import Built, base, build, pip_arguments, pip_settings, torch_index
from tests.deploy.image.engine import Container, Engine

OWN, OPENSHIFT, OTHER = last("cpu", "USER"), "1000680000:0", "12345:12345"
MOST_BYTES = 1_250_000_000
FIRST_START_S, START_LIMIT_S, STOP_S = 8.0, 180.0, 15.0
TICKS = os.sysconf("SC_CLK_TCK")
MACHINE_CODE = "/app/model/machine_code"
# What a client would do; the container has no network but its own loopback.
_CLASSIFY = """
import io, urllib.request
from PIL import Image
photo = io.BytesIO()
Image.open('/app/examples/images/coat.png').convert('RGB').resize((600, 600)).save(photo, 'JPEG')
request = urllib.request.Request('http://127.0.0.1:8000/v1/classify', data=photo.getvalue())
with urllib.request.urlopen(request, timeout=30) as answer:
    print(answer.status, answer.read().decode())
"""
_TIMES = "cat /proc/[0-9]*/stat"
_PACKAGES = "import importlib.metadata as m; print(len([*m.distributions()]))"


@dataclass
class Started:
    """A container that serves, and the seconds until it did."""

    container: Container
    seconds: float


@pytest.fixture(scope="session")
def image(engine: Engine) -> Built:
    """The image, built with what this machine's pip is told."""
    how = [*base(engine), *pip_arguments(engine, local=True), *torch_index(pip_settings())]
    return build(engine, "cpu", *how)


@pytest.fixture(scope="session")
def config(engine: Engine, image: Built) -> dict[str, Any]:
    """The image's configuration."""
    (found,) = json.loads(engine.read(engine.podman("image", "inspect", image.image)))
    values: dict[str, Any] = found
    return values


def start(engine: Engine, image: Built, user: str, *options: str) -> Started:
    """Start a container and wait until it serves. Raises AssertionError with its log."""
    began = time.monotonic()
    container = engine.start(image.image, user, *options)
    while "ready in" not in container.log():
        assert container.runs(), container.log()
        assert time.monotonic() - began < START_LIMIT_S, container.log()
        time.sleep(0.1)
    return Started(container, time.monotonic() - began)


@pytest.fixture(scope="module", params=[OWN, OPENSHIFT, OTHER])
def started(request: pytest.FixtureRequest, engine: Engine, image: Built) -> Iterator[Started]:
    """A locked-down container of the image's user, of a cluster's with group 0, and of any other one."""
    found = start(engine, image, request.param)
    yield found
    found.container.remove()


def test_the_summary(engine: Engine, image: Built) -> None:
    """The image has no more than the size that docs/internals/container-image.md states; prints the build's summary."""
    container = engine.podman("run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    packages = engine.read([*container, "--entrypoint=python", image.image, "-c", _PACKAGES])
    debian = engine.read([*container, "--entrypoint=sh", image.image, "-c", "ls /var/lib/dpkg/info/*.list | wc -l"])
    print(f"\n{image.summary()}\n  {packages} Python packages, {debian} Debian packages")

    assert image.size <= MOST_BYTES


def test_the_configuration_is_the_dockerfiles(config: dict[str, Any]) -> None:
    """User, entry point, volume, stop signal and health check have arrived, in the format of Docker."""
    found = config["Config"]

    assert OWN == found["User"]
    assert ["python", "-m", "service"] == found["Entrypoint"]
    assert {"/cache": {}} == found["Volumes"]
    assert "SIGTERM" == found["StopSignal"]
    health = config["Healthcheck"]
    assert ["CMD", "python", "-m", "service.server.healthcheck"] == health["Test"]
    assert (10e9, 10e9, 300e9, 3) == tuple(health[name] for name in ("Interval", "Timeout", "StartPeriod", "Retries"))


def test_it_is_healthy_and_answers(started: Started) -> None:
    """The image's health check passes, and a photograph is classified."""
    container = started.container
    health = container.engine.call(container.engine.podman("healthcheck", "run", container.name))
    answer = container.execute("python", "-c", _CLASSIFY)

    assert (0, "") == (health.returncode, health.stdout.strip())
    assert answer.stdout.startswith("200 "), answer.stderr
    assert '"predictions"' in answer.stdout


def test_it_is_locked_down(started: Started) -> None:
    """Nothing but /cache and /tmp can be written; no capability, no new rights, no network, 64 KB of /dev/shm."""
    shell = started.container.shell
    status = dict(line.split(":\t") for line in shell("grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/1/status").splitlines())

    assert {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"} == status
    assert "lo" == shell("ls /sys/class/net")
    assert "64" == shell("df --output=size /dev/shm | tail -1").strip()
    assert "" == shell("for at in / /app /opt/venv /etc; do touch $at/x 2> /dev/null && echo $at; done; true")
    assert "" == shell("touch /tmp/x && rm /tmp/x")


def test_it_compiles_nothing(started: Started) -> None:
    """A first start finds every kernel in the image: the cache stays empty, and the log has no warning."""
    log = [json.loads(line) for line in started.container.log().splitlines() if line.startswith("{")]

    assert [] == [line["message"] for line in log if line["level"] not in ("info", "debug")]
    assert "" == started.container.shell("find /cache -name '*.code' 2> /dev/null; true")


def test_the_cache_is_the_services(started: Started) -> None:
    """/cache belongs to the image's user and to group 0; others cannot write what is executed there."""
    shell = started.container.shell
    user, group = shell("echo $(id -u):$(id -g)").split(":")
    writable = shell("touch /cache/x 2> /dev/null && rm /cache/x && echo yes; true") == "yes"

    assert "10001:0 770" == shell("stat --format '%u:%g %a' /cache")
    assert writable == (user == "10001" or group == "0")


@pytest.mark.parametrize("user", [OWN, OPENSHIFT])
def test_sigterm_ends_it(engine: Engine, image: Built, user: str) -> None:
    """The stop signal reaches the server, which ends by itself with status 0."""
    found = start(engine, image, user)
    began = time.monotonic()
    try:
        assert 0 == found.container.stop()
        assert time.monotonic() - began < STOP_S
    finally:
        found.container.remove()


def test_a_first_start_takes_less_than_8_seconds(engine: Engine, image: Built) -> None:
    """The best of three fresh containers; prints it beside the start without the image's machine code."""
    fresh = [measured(engine, image) for _ in range(3)]
    compiling = (f"--tmpfs={MACHINE_CODE}:notmpcopyup", "--volume=compiled:/cache")
    without, again = (measured(engine, image, *compiling) for _ in range(2))
    engine.read(engine.podman("volume", "rm", "compiled"))
    said = (
        f"until ready: fresh container {', '.join(map(str, fresh))}; without the image's machine code {without}, "
        f"then with the cache that this left {again}"
    )
    print(f"\n{said}")

    assert min(one.seconds for one in fresh) < FIRST_START_S, said
    assert min(one.cpu for one in fresh) < without.cpu / 1.5, said


@dataclass
class Measured:
    """Seconds until a container serves, its CPU seconds until then, and the share of the CPUs that was not its own."""

    seconds: float
    cpu: float
    others: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu:.1f} s of CPU, others {self.others:.0%})"


def measured(engine: Engine, image: Built, *options: str) -> Measured:
    """Start a container, measure and remove it."""
    before = busy()
    found = start(engine, image, OWN, *options)
    lines = [line.rpartition(")")[2].split() for line in found.container.shell(_TIMES).splitlines()]
    cpu = sum(int(line[at]) for line in lines for at in (11, 12)) / TICKS
    others = max(0.0, busy() - before - cpu) / (found.seconds * (os.cpu_count() or 1))
    found.container.remove()
    return Measured(found.seconds, cpu, others)


def busy() -> float:
    """CPU seconds of all programs of this machine since it was started."""
    user, nice, system, *_ = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    return (int(user) + int(nice) + int(system)) / TICKS
