"""Build targets of the Dockerfile with buildah: the base image, the package indexes, and a summary of the stages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.deploy.dockerfile import ROOT
from tests.deploy.image.engine import Engine

STAND_IN = "localhost/python:3.11-bookworm-stand-in"
# Debian 12 has the Dockerfile's Python; without what the slim image leaves out, and with /bin in /usr, without perl.
_DEBIAN = (
    "--quiet", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--include=python3,python3-venv,python3-pip,python-is-python3,ca-certificates,tzdata,netbase",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc", "info")),
    '--aptopt=Acquire::Check-Date "false"', "bookworm",
)  # fmt: skip
_LOCAL = ("find-links", "index-url", "extra-index-url")
_STAGE = re.compile(r"^(?:\[\d+/\d+\] )?STEP \d+(?:/\d+)?: FROM .* AS (\S+)")
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass
class Built:
    """An image, and the seconds that its stages took; stages that were found in the cache take none."""

    image: str
    size: int
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the stages, the time and the size as text."""
        rows = [f"  {name:20}{seconds:8.1f} s" for name, seconds in self.seconds.items()]
        total = f"  {'all stages':20}{sum(self.seconds.values()):8.1f} s"
        return "\n".join([f"{self.image}: {self.size / 1e6:,.0f} MB", *rows, total])


def base(engine: Engine) -> list[str]:
    """The arguments that choose the base image: that of the Dockerfile (BASE=pull), another one, or a stand-in."""
    wanted = os.environ.get("BASE") or STAND_IN
    if wanted == "pull":
        return []
    if wanted == STAND_IN and engine.call(engine.buildah("inspect", "--type=image", STAND_IN)).returncode != 0:
        _make_stand_in(engine)
    return [f"--build-arg=BASE={wanted}"]


def _make_stand_in(engine: Engine) -> None:
    archive = engine.directory / "base.tar"
    engine.read(["mmdebstrap", *_DEBIAN, str(archive)])
    container = engine.read(engine.buildah("from", "scratch"))
    engine.read(engine.buildah("add", "--quiet", container, str(archive), "/"))
    engine.read(engine.buildah("commit", "--quiet", "--rm", container, STAND_IN))
    archive.unlink()


def pip_settings() -> dict[str, list[str]]:
    """What pip is told on this machine by files and by the environment, without what has no meaning in the build."""
    found: dict[str, list[str]] = {}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    for name, text in re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed.stdout, re.MULTILINE):
        if name in (*_LOCAL, "cert", "trusted-host"):
            found[name] = list(dict.fromkeys([*found.get(name, []), *text.replace("\\n", " ").split()]))
    return found


def pip_arguments(engine: Engine, *, local: bool) -> list[str]:
    """The secret `pip`, and read-only mounts of the indexes and certificates that it names on this machine.

    Without `local` only the certificates and the index are passed on: a CPU wheel of torch may lie on this machine.
    """
    settings = {name: values for name, values in pip_settings().items() if local or name not in _LOCAL}
    file = engine.directory / f"pip-{'local' if local else 'plain'}.conf"
    lines = [f"{name} = {' '.join(values)}" for name, values in settings.items()]
    file.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    places = {place for values in settings.values() for value in values if (place := _place(value))}
    mounts = [f"--volume={place}:{place}:ro" for place in sorted(places | {_CERTIFICATES}) if Path(place).exists()]
    return [f"--secret=id=pip,src={file}", *mounts]


def _place(value: str) -> str | None:
    """Return the path on this machine that a setting names. An index's files lie beside its pages."""
    if value.startswith("file:"):
        return str(Path(urlsplit(value).path).parent)
    return value if value.startswith("/") else None


def torch_index(settings: dict[str, list[str]]) -> list[str]:
    """TORCH_INDEX as given; none where this machine's pip has indexes of its own; else that of the Dockerfile."""
    given = os.environ.get("TORCH_INDEX", "")
    return [f"--build-arg=TORCH_INDEX={given}"] if given or settings.keys() & set(_LOCAL) else []


def build(engine: Engine, target: str, *arguments: str) -> Built:
    """Build one target in the Docker format, which alone has health checks. Raises AssertionError with the log."""
    image = f"localhost/vim-server:{target}"
    how = ("--isolation=chroot", "--format=docker", "--layers", f"--target={target}", f"--tag={image}")
    command = engine.buildah("build", *how, *arguments, str(ROOT))
    log, seconds, stage, since = [], dict[str, float](), "", time.monotonic()
    with subprocess.Popen(
        command, env=engine.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if found := _STAGE.match(line):
                now = time.monotonic()
                seconds[stage] = seconds.get(stage, 0) + now - since
                stage, since = found[1], now
    assert process.returncode == 0, f"{' '.join(command)}\n{''.join(log[-40:])}"
    seconds[stage] = seconds.get(stage, 0) + time.monotonic() - since
    size = engine.read(engine.podman("image", "inspect", "--format", "{{.Size}}", image))
    return Built(image, int(size), {name: taken for name, taken in seconds.items() if name})
