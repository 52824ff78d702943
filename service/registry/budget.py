"""Checks whether a new version of a model fits into memory. It is assumed to need as much as the present one."""

from __future__ import annotations

from collections.abc import Sequence

from service.status import DeviceStatus


def shortage(present: Sequence[DeviceStatus], everything: Sequence[DeviceStatus], available: int | None) -> str | None:
    """Return why a second load of a model does not fit, with the figures. None: it fits, or nothing is known.

    `present`: the devices of the version that serves. `everything`: those of all loaded models. `available`: memory of
    the host, in bytes; None if unknown.
    """
    needed = sum(device.host_bytes for device in present)
    if available is not None and needed > available:
        return f"it takes about {_gb(needed)} of memory while both versions are loaded; {_gb(available)} are available"
    for device in present:
        total, needed = device.memory.get("total", 0), device.memory.get("reserved", 0)
        free = total - sum(other.memory.get("reserved", 0) for other in everything if other.name == device.name)
        if needed > free:
            return (
                f"it takes about {_gb(needed)} of {device.name} while both versions are loaded; "
                f"the models leave {_gb(free)} of {_gb(total)}"
            )
    return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
