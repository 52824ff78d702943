"""A second load of a model is refused if the measured memory of the first one is not free again."""

from __future__ import annotations

import pytest

from service.registry.budget import shortage
from service.status import DeviceStatus

GB = 10**9


def device(name: str, host: int, reserved: int = 0, total: int = 0) -> DeviceStatus:
    """A device process that takes this memory."""
    return DeviceStatus(name, host_bytes=host, memory={"reserved": reserved, "total": total} if total else {})


@pytest.mark.parametrize(("available", "fits"), [(None, True), (3 * GB, True), (2 * GB - 1, False)])
def test_the_memory_of_the_host_must_hold_both(available: int | None, fits: bool) -> None:
    """Two device processes of 1 GB each need 2 GB more for their successors."""
    present = [device("cpu", GB), device("cpu", GB)]
    found = shortage(present, present, available)

    assert fits == (found is None)
    assert fits or found == "it takes about 2.00 GB of memory while both versions are loaded; 2.00 GB are available"


def test_the_memory_of_each_gpu_must_hold_both() -> None:
    """What all models have reserved on a GPU counts; another GPU does not."""
    present = [device("cuda:0", 1, 30 * GB, 80 * GB), device("cuda:1", 1, 30 * GB, 80 * GB)]
    others = [device("cuda:1", 1, 25 * GB, 80 * GB)]

    assert shortage(present, present, None) is None
    assert (
        "it takes about 30.00 GB of cuda:1 while both versions are loaded; the models leave 25.00 GB of 80.00 GB"
        == (shortage(present, [*present, *others], None))
    )
