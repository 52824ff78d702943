"""Rules between settings: each is one line that names the variables, raised as ValueError."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from service.system.environment import variable

if TYPE_CHECKING:
    from service.settings.settings import Settings

_OF_ONE_MODEL = {"model_name": "", "model_family": None, "weights": "model", "image_size": None, "labels": ""}


def check(settings: Settings, given: Collection[str]) -> None:
    """Raise ValueError for settings that contradict each other. `given` are the fields that are not defaults."""
    _check_models(settings, given)
    if settings.max_batch is not None and settings.max_batch > settings.queue_images:
        raise ValueError(
            f"{variable('max_batch')}={settings.max_batch} exceeds {variable('queue_images')}={settings.queue_images}: "
            "such a batch could never fill"
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ValueError(f"{variable('tls_cert')} and {variable('tls_key')} belong together: set both or neither")
    if settings.fetch_hosts and settings.offline:
        raise ValueError(f"{variable('fetch_hosts')} needs the network, which {variable('offline')} forbids")
    if settings.model_control == "explicit" and not settings.admin_keys and settings.admin_keys_file is None:
        raise ValueError(
            f"{variable('model_control')}=explicit needs keys of administrators: "
            f"set {variable('admin_keys')} or {variable('admin_keys_file')}"
        )


def _check_models(settings: Settings, given: Collection[str]) -> None:
    several = [field for field in ("models", "model_repository") if getattr(settings, field)]
    sources = ["model", *several] if "model" in given else several
    if len(sources) > 1:
        raise ValueError(f"{_listed(sources)} each say what to serve: set only one of them")
    single = [field for field, default in _OF_ONE_MODEL.items() if getattr(settings, field) != default]
    if several and single:
        raise ValueError(f"{_listed(single)} cannot be used with {variable(several[0])}: it is for VIM_MODEL alone")


def _listed(fields: Collection[str]) -> str:
    return " and ".join(map(variable, fields))
