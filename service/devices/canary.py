"""The canary: an image with a known result, which a device process must reproduce before it serves.

The reference result is recorded at the first load, after the scan's self-test. Every later device process, on this or
another device, must reproduce it before it serves.
"""

from __future__ import annotations

import asyncio

import numpy as np

from service.devices.process import DeviceLost, DeviceProcess
from service.devices.slots import Slots
from service.jobs import Area, Job, Task
from service.status import ModelInfo

# Largest difference allowed, relative to the largest value of the reference result: wide enough for another kind of
# device, too narrow for a broken one.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


class Canary:
    """The image has a slot of its own, so that it never waits for one."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.model: ModelInfo | None = None  # the first that was loaded: the model that is served
        self.area: Area | None = None  # of its pixels, once it is loaded
        self._tolerance = 0.0
        self._reference: np.ndarray | None = None

    def prepare(self, model: ModelInfo) -> Area:
        """Return the area of the pixels. The first call adds it and draws the image.

        Raises DeviceLost when a later one has loaded another model, for example because its file was replaced.
        """
        if self.model is not None and self.model.fingerprint != model.fingerprint:
            raise DeviceLost(f"it loaded model {model.fingerprint}; the service serves {self.model.fingerprint}")
        if self.model is None:
            self.model = model
            self._tolerance = TOLERANCE[model.dtype]
            self.area = self._slots.add(model.image_size)
            pixels = self.pixels[self._slots.canary_slot]
            pixels[...] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
        assert self.area is not None
        return self.area

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of all slots, uint8 (slots, size, size, 3)."""
        assert self.area is not None
        return self._slots.views(self.area)

    async def check(self, process: DeviceProcess) -> None:
        """Run the image. Raises DeviceLost when the result is not the reference result."""
        done = asyncio.get_running_loop().create_future()
        job = Job(self._slots.canary_slot, Task("embed"), 0.0, done)
        (row,) = (await process.run([job])).rows
        if row is None:
            raise DeviceLost(
                "the result of the canary image is not finite; float16 can overflow: set VIM_DTYPE=auto or float32"
            )
        values = np.frombuffer(row, np.float32)
        if self._reference is None:
            self._reference = values
        error = float(np.abs(values - self._reference).max() / np.abs(self._reference).max())
        if not error <= self._tolerance:
            raise DeviceLost(f"the result of the canary image differs by {error:.1e} of its largest value")
