"""A device that gives a wrong result for the known image never serves; rounding errors are accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from service.devices.canary import Canary
from service.devices.messages import BatchDone
from service.devices.process import DeviceLost, DeviceProcess
from service.devices.slots import Slots
from service.jobs import Job
from tests.service.devices.scripted_devices import model_info

pytestmark = pytest.mark.anyio
GOLDEN = np.array([1.0, -4.0, 2.0], np.float32)


class Answers:
    """A device that answers every image with the same row."""

    def __init__(self, row: np.ndarray | None) -> None:
        self.row = row

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        """Answer every job with the row."""
        return BatchDone(0, (None if self.row is None else self.row.tobytes(),) * len(batch), 0.001)


def device(row: np.ndarray | None) -> DeviceProcess:
    """A device that gives this row."""
    return cast(DeviceProcess, cast(Any, Answers(row)))


@pytest.fixture
def canary() -> Iterator[Canary]:
    """A canary of a model in float32."""
    slots = Slots(2)
    canary = Canary(slots)
    canary.prepare(model_info())
    yield canary
    slots.close()


async def test_the_first_answer_is_golden_and_rounding_passes(canary: Canary) -> None:
    """The first result is the reference, and a result that differs by rounding is accepted."""
    await canary.check(device(GOLDEN))

    await canary.check(device(GOLDEN * np.float32(1 + 1e-6)))


@pytest.mark.parametrize("wrong", [GOLDEN * 1.01, -GOLDEN, GOLDEN * np.nan, None])
async def test_another_answer_loses_the_device(canary: Canary, wrong: np.ndarray | None) -> None:
    """A result that differs by more than rounding, NaN included, means that the device is broken."""
    await canary.check(device(GOLDEN))

    with pytest.raises(DeviceLost, match="canary"):
        await canary.check(device(wrong))
