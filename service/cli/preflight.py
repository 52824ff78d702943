"""What `serve` checks before the server is imported: each failure is one line, and torch is not loaded for it."""

from __future__ import annotations

import ctypes
import socket
from pathlib import Path

from model.labels import IMAGENET, NUMBERED, Labels
from model.loading import source
from service import api_keys
from service.cli.backend import CommandError
from service.server import certificate
from service.server.prefork import sockets
from service.settings import Settings, variable

_DRIVER = "libcuda.so.1"
_AMD = Path("/dev/kfd")  # torch for AMD's GPUs calls them cuda as well


def check(settings: Settings) -> None:
    """Raise SettingsError, ModelError or CommandError with the reason why these settings cannot be served."""
    source.check(settings.model)
    if settings.labels not in ("", IMAGENET, NUMBERED):
        Labels.named(settings.labels)
    if settings.api_keys_file is not None:
        api_keys.read(settings.api_keys_file, variable("api_keys_file"))
    certificate.check(settings)
    if settings.device.startswith("cuda"):
        check_driver(settings.device)
    check_port(settings.host, settings.port, "VIM_PORT (--port) or VIM_HOST (--host)")
    if settings.metrics_port is not None:
        check_port(settings.host, settings.metrics_port, "VIM_METRICS_PORT")


def check_driver(device: str) -> None:
    """Raise CommandError if this machine has no driver for a GPU."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        if not _AMD.exists():
            raise CommandError(
                f"VIM_DEVICE={device}: this machine has no NVIDIA driver ({_DRIVER}); install it, or set auto or cpu"
            ) from None


def check_port(host: str, port: int, settings: str) -> None:
    """Raise CommandError if the server cannot listen. Without this check the error comes after the model is loaded."""
    try:
        with sockets.kept(host, port):
            pass
    except socket.gaierror as error:
        raise CommandError(f"cannot listen on {host}: {_reason(error)}; set VIM_HOST (--host) to another") from None
    except OSError as error:
        place = f"{host} port {port}"
        raise CommandError(f"cannot listen on {place}: {_reason(error)}; set {settings} to another") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
