"""What `serve` checks before the server is imported: each failure is one line, and torch is not loaded for it."""

from __future__ import annotations

import ctypes
import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path

from model.errors import WeightsError
from model.labels import IMAGENET, NUMBERED, Labels
from model.loading import source
from service import api_keys
from service.cli.backend import CommandError
from service.registry.sources import Sources
from service.server import certificate
from service.server.prefork import sockets
from service.settings import Settings, variable

_DRIVER = "libcuda.so.1"
_GRPC = ("grpc", "grpc_health", "grpc_reflection", "tritonclient")
_AMD = Path("/dev/kfd")  # torch for AMD's GPUs calls them cuda as well


def check(settings: Settings) -> None:
    """Raise SettingsError, ModelError or CommandError with the reason why these settings cannot be served."""
    check_models(settings)
    if settings.labels not in ("", IMAGENET, NUMBERED):
        Labels.named(settings.labels)
    for field, file in (("api_keys_file", settings.api_keys_file), ("admin_keys_file", settings.admin_keys_file)):
        if file is not None:
            api_keys.read(file, variable(field))
    certificate.check(settings)
    if settings.device.startswith("cuda"):
        check_driver(settings.device)
    check_port(settings.host, settings.port, "VIM_PORT (--port) or VIM_HOST (--host)")
    if settings.metrics_port is not None:
        check_port(settings.host, settings.metrics_port, "VIM_METRICS_PORT")
    if settings.grpc_port is not None:
        check_installed(_GRPC, "VIM_GRPC_PORT", "grpc")
        check_port(settings.host, settings.grpc_port, "VIM_GRPC_PORT")


def check_models(settings: Settings) -> None:
    """Raise ModelError or CommandError if there is no model, or one that cannot be loaded. Downloads nothing."""
    if settings.model_repository is not None:
        _check_repository(settings.model_repository)
    sources = Sources.of(settings)
    names = sources.names()
    if not names:
        raise CommandError(
            f"{variable('model_repository')}: {settings.model_repository} has no model: it needs a folder for each "
            "model, with the model's files, or with folders 1, 2, ... that have them"
        )
    for name in names:
        try:
            source.check(sources.find(name).source)
        except WeightsError as error:
            raise WeightsError(f"model {name}: {error}" if len(names) > 1 else str(error)) from error


def _check_repository(repository: Path) -> None:
    try:
        next(repository.iterdir(), None)
    except OSError as error:
        raise CommandError(
            f"{variable('model_repository')}: {repository} cannot be read: {error.strerror}; "
            "it must be a folder with a folder for each model"
        ) from None


def check_driver(device: str) -> None:
    """Raise CommandError if this machine has no driver for a GPU."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        if not _AMD.exists():
            raise CommandError(
                f"VIM_DEVICE={device}: this machine has no NVIDIA driver ({_DRIVER}); install it, or set auto or cpu"
            ) from None


def check_installed(packages: Sequence[str], what: str, extra: str) -> None:
    """Raise CommandError if a package of an extra is not installed; `what` needs it."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise CommandError(f"{what} needs the package {missing[0]}, which is not installed: pip install '.[{extra}]'")


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
