"""One image whose answer is known: a device that gives another one is broken, however alive it looks.

The golden answer is recorded at the first load, after the scan's self-test; every device process that comes later, on
this or another device, must give it again before it serves.
"""

from __future__ import annotations

import asyncio

import numpy as np

from service.devices.process import Device, DeviceLost
from service.devices.slots import Arena
from service.jobs import Job, Task

# Largest difference allowed, as a part of the golden answer's largest value: generous to another kind of device,
# hopeless for a broken one.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


class Canary:
    """Lives in a slot of its own, so that it never waits for one."""

    def __init__(self, arena: Arena, dtype: str) -> None:
        self._slot = arena.canary_slot
        self._tolerance = TOLERANCE[dtype]
        self._golden: np.ndarray | None = None
        pixels = arena.pixels.slot(self._slot)
        pixels[...] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)

    async def check(self, device: Device) -> None:
        """Run the image. Raises DeviceLost when the answer is not the golden one."""
        job = Job(self._slot, Task("embed"), 0.0, asyncio.get_running_loop().create_future())
        (row,) = (await device.run([job])).rows
        if row is None:
            raise DeviceLost("the canary image's answer is not finite")
        if self._golden is None:
            self._golden = row
        error = float(np.abs(row - self._golden).max() / np.abs(self._golden).max())
        if not error <= self._tolerance:
            raise DeviceLost(f"the canary image's answer is off by {error:.1e} of its largest value")
