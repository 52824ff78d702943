"""The current values that gauges show: queue, bodies, batches and busy threads."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field

from service.jobs import RequestClass
from service.system.shared_counts import SharedCount, alone


def _none() -> Mapping[RequestClass, SharedCount]:
    interactive, bulk = alone(2)
    return {"interactive": interactive, "bulk": bulk}


@dataclass(slots=True)
class Levels:
    """Current values, which their owners update in place; read whenever a page of metrics is made."""

    batches: int = 0  # with the devices
    images: Mapping[RequestClass, SharedCount] = field(default_factory=_none)  # admitted and not yet answered
    body_bytes: Mapping[RequestClass, SharedCount] = field(default_factory=_none)  # of request bodies in memory
    decoding: Sized = ()  # threads that decode now
