"""docker-compose.yml as Compose resolves it; needs no daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings, variable
from tests.deploy.dockerfile import ROOT, last, stages, tool

COMPOSE = tool("docker-compose")
pytestmark = pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed (extra: deploy)")
SERVICES = ("cpu", "gpu")


def config(tmp_path: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    """The services after Compose has resolved everything, with nothing of ours in the environment but `environ`."""
    (tmp_path / "empty.env").touch()
    ours = {name: text for name, text in os.environ.items() if not name.startswith(("VIM_", "HF_", "COMPOSE_"))}
    command = [str(COMPOSE), "--env-file", str(tmp_path / "empty.env"), *arguments, "config", "--format", "json"]
    run = subprocess.run(command, cwd=ROOT, env=ours | environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    found: dict[str, Any] = json.loads(run.stdout)["services"]
    return found


def test_the_gpu_is_opt_in(tmp_path: Path) -> None:
    """`docker compose up` starts the CPU service; the profile `gpu` adds the GPU service on another port."""
    assert set(config(tmp_path)) == {"cpu"}
    services = config(tmp_path, "--profile", "gpu")
    assert set(services) == {"cpu", "gpu"}
    assert [[port["published"] for port in services[name]["ports"]] for name in SERVICES] == [["8000"], ["8001"]]
    device = services["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert {services[name]["build"]["target"] for name in SERVICES} <= stages().keys()


@pytest.mark.parametrize("name", SERVICES)
def test_passes_on_only_known_settings(tmp_path: Path, name: str) -> None:
    """Compose passes on the settings that are set; it does not pass the others as empty texts."""
    service = config(tmp_path, "--profile", "gpu", VIM_MODEL="vim-tiny")[name]
    environ = {key: text for key, text in service["environment"].items() if key.startswith("VIM_")}
    assert environ.keys() <= {variable(field) for field in Settings.model_fields}
    given = {key: text for key, text in environ.items() if text is not None}
    assert set(given) == {"VIM_HOST", "VIM_PORT", "VIM_CACHE_DIR", "VIM_MODEL"}
    settings = Settings.load(given)
    assert settings.model == "vim-tiny"
    assert [port["target"] for port in service["ports"]] == [settings.port]


@pytest.mark.parametrize("name", SERVICES)
def test_passes_on_every_setting(tmp_path: Path, name: str) -> None:
    """Compose passes on every setting of the service from the shell or .env."""
    fixed = {"VIM_HOST", "VIM_PORT", "VIM_CACHE_DIR"}
    changed = {key: f"value of {key}" for key in map(variable, Settings.model_fields) if key not in fixed}
    environ = config(tmp_path, "--profile", "gpu", **changed)[name]["environment"]

    assert changed == {key: environ.get(key) for key in changed}


@pytest.mark.parametrize("name", SERVICES)
def test_locked_down(tmp_path: Path, name: str) -> None:
    """Each service has a read-only root, one writable volume, no capabilities and a loopback port."""
    service = config(tmp_path, "--profile", "gpu")[name]
    assert service["read_only"]
    assert service["init"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
    writable = [volume["target"] for volume in service["volumes"] if not volume.get("read_only")]
    assert writable == [service["environment"]["VIM_CACHE_DIR"]]


@pytest.mark.parametrize("name", SERVICES)
def test_stops_only_after_the_drain(tmp_path: Path, name: str) -> None:
    """The grace period of Compose is longer than the default drain of the server."""
    grace = config(tmp_path, "--profile", "gpu")[name]["stop_grace_period"]
    settings = Settings()
    seconds = re.fullmatch(r"(\d+)s", grace)
    assert seconds is not None
    assert int(seconds[1]) >= (settings.drain_delay_ms + settings.drain_timeout_ms) / 1000 + 10


@pytest.mark.parametrize("name", SERVICES)
def test_asks_the_health_check_of_the_image(tmp_path: Path, name: str) -> None:
    """The health check has the command and the times of the image."""
    health = config(tmp_path, "--profile", "gpu")[name]["healthcheck"]
    image = last("cpu", "HEALTHCHECK")
    times = {key: f"{image_seconds}s" for key, image_seconds in re.findall(r"--([a-z-]+)=(\d+)s", image)}

    assert health["test"] == ["CMD", "python", "-m", "service.server.healthcheck"]
    assert {"interval": "10s", "timeout": "10s", "start-period": "300s"} == times
    assert (health["interval"], health["timeout"], health["start_period"]) == ("10s", "10s", "5m0s")
    assert f"--retries={health['retries']} " in image
