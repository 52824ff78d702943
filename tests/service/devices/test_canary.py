"""A device that answers the known image wrongly never serves; rounding is forgiven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from service.devices.canary import Canary
from service.devices.messages import BatchDone
from service.devices.process import DeviceLost
from service.devices.slots import Slots
from service.jobs import Job

pytestmark = pytest.mark.anyio
GOLDEN = np.array([1.0, -4.0, 2.0], np.float32)


class Answers:
    """Stands for a device that answers every image with one row."""

    def __init__(self, row: np.ndarray | None) -> None:
        self.row = row

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        """One row for each job."""
        return BatchDone(0, (self.row,) * len(batch), 0.001)


def device(row: np.ndarray | None) -> Device:
    """A device that gives this row."""
    return cast(Device, cast(Any, Answers(row)))


@pytest.fixture
def arena() -> Iterator[Slots]:
    """Two slots of 8 x 8 pixels, and the canary's."""
    arena = Slots(2)
    arena.map(8)
    yield arena
    arena.close()


async def test_the_first_answer_is_golden_and_rounding_passes(arena: Slots) -> None:
    """Another process on the same model agrees to rounding."""
    canary = Canary(arena, "float32")
    await canary.check(device(GOLDEN))

    await canary.check(device(GOLDEN * np.float32(1 + 1e-6)))


@pytest.mark.parametrize("wrong", [GOLDEN * 1.01, -GOLDEN, GOLDEN * np.nan, None])
async def test_another_answer_loses_the_device(arena: Slots, wrong: np.ndarray | None) -> None:
    """However alive it looks; NaN too."""
    canary = Canary(arena, "float32")
    await canary.check(device(GOLDEN))

    with pytest.raises(DeviceLost, match="canary"):
        await canary.check(device(wrong))
