"""API keys and TLS with a real server: accepted and refused requests, and the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton

from tests.e2e.server import ROOT, Server, free_port, serving
from tests.tiny import photo, write_tiny_model

KEY = "a-key-of-the-e2e-test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=vim -addext subjectAltName=IP:127.0.0.1"
    files = ["-out", str(made["tls_cert"]), "-keyout", str(made["tls_key"])]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return made


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of our programs; these are its only VIM_ variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VIM_")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=120)


def test_keys_and_tls_over_grpc(tmp_path: Path, certificate: dict[str, Path]) -> None:
    """The gRPC port has the certificate and the keys of the server; a client without TLS gets no answer."""
    settings: dict[str, Any] = {**certificate, "api_keys": KEY, "model": write_tiny_model(tmp_path / "tiny")}
    port, trusted = free_port(), {"ssl": True, "root_certificates": str(certificate["tls_cert"])}
    with serving(tmp_path, grpc_port=port, **settings):
        with triton.InferenceServerClient(f"127.0.0.1:{port}", **trusted) as client:
            assert client.get_model_metadata("tiny", headers={"x-api-key": KEY}).name == "tiny"
            with pytest.raises(triton.InferenceServerException, match="API key"):
                client.get_model_metadata("tiny")
        plain = triton.InferenceServerClient(f"127.0.0.1:{port}")
        with plain, pytest.raises(triton.InferenceServerException):
            plain.is_server_live(client_timeout=5)


def test_keys_and_tls_from_end_to_end(tmp_path: Path, certificate: dict[str, Path]) -> None:
    """With keys and TLS the server, its health check and a command with a key work; others are refused."""
    settings: dict[str, Any] = {**certificate, "api_keys": KEY, "model": write_tiny_model(tmp_path / "tiny")}
    (tmp_path / "photo.jpg").write_bytes(photo())
    trusted = {"SSL_CERT_FILE": str(certificate["tls_cert"])}
    with serving(tmp_path, **settings) as server, server.client() as client:
        refused = client.post("/v1/classify", content=photo())
        good = client.post("/v1/classify", content=photo(), headers={"Authorization": f"Bearer {KEY}"})
        ask = ("service", "classify", str(tmp_path / "photo.jpg"), "--url", server.url, "--json")
        with_key, without = run(*ask, VIM_CLIENT_KEY=KEY, **trusted), run(*ask, **trusted)
        mistrusted = run(*ask, VIM_CLIENT_KEY=KEY)
        health = {f"VIM_{name.upper()}": str(value) for name, value in settings.items() if name != "model"}
        healthy = run("service.server.healthcheck", VIM_PORT=server.url.rsplit(":", 1)[1], **health)
        child = psutil.Process(server.device_pid())

        assert (401, 200) == (refused.status_code, good.status_code)
        assert "max-age" in good.headers["Strict-Transport-Security"]
        assert 0 == with_key.returncode, with_key.stderr
        assert good.json()["results"][0]["predictions"][0]["label"] in with_key.stdout
        assert (1, 1) == (without.returncode, mistrusted.returncode)
        assert "API key" in without.stderr
        assert "certificate" in mistrusted.stderr.lower()
        assert 0 == healthy.returncode, healthy.stderr
        assert KEY not in " ".join([*child.cmdline(), *child.environ().values(), server.log])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"api_keys": "short"}, "VIM_API_KEYS must be keys"),
        ({"api_keys_file": "/nowhere/keys"}, "VIM_API_KEYS_FILE: /nowhere/keys cannot be read"),
        ({"tls_cert": "/nowhere/cert.pem"}, "set both or neither"),
        (
            {"tls_cert": "/nowhere/cert.pem", "tls_key": "/nowhere/key.pem"},
            "VIM_TLS_CERT: /nowhere/cert.pem cannot be read",
        ),
    ],
)
def test_a_door_that_cannot_be_closed_is_not_opened(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    """If keys or TLS cannot be set up, the server does not start: exit status 2 and one line."""
    server = Server(tmp_path / "server.log", **settings)

    assert 2 == server.exit_status(60)
    assert says in server.log
    assert "Traceback" not in server.log
