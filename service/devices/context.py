"""What the supervisors and dispatchers of one loaded model share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.devices.batcher import Batcher
from service.devices.canary import Canary
from service.devices.retry import Quarantine
from service.devices.slots import Slots
from service.devices.turns import Turns
from service.settings import Settings
from service.telemetry.model_metrics import ModelMetrics


@dataclass(slots=True)
class Context:
    """Shared by all devices of one loaded model."""

    settings: Settings
    metrics: ModelMetrics  # of the model that the devices serve
    slots: Slots
    queue: Batcher
    worker: str  # the module that runs as the device process
    canary: Canary
    background: bool = False  # the first start is at low priority
    quarantine: Quarantine = field(default_factory=Quarantine)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # a job was queued, or a device was lost
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a device came up, was lost, or learned its limit
    turns: Turns = field(default_factory=Turns)  # of the models that share the devices
