"""What the supervisors and dispatchers of one service share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.devices.batcher import Batcher
from service.devices.retry import Quarantine
from service.devices.slots import Slots
from service.settings import Settings
from service.telemetry.metrics import Metrics


@dataclass(slots=True)
class Context:
    """Shared by all devices of one service."""

    settings: Settings
    metrics: Metrics
    slots: Slots
    queue: Batcher
    worker: str  # the module that runs as the device process
    quarantine: Quarantine = field(default_factory=Quarantine)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # a job was queued, or a device was lost
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a device came up, was lost, or learned its limit
