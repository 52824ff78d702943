"""Decides which of several models sends the next batch to a device. Plain Python: no processes, no torch.

Each model on a device has a claim. One model at a time has batches on the device: the holder. It may have several. Each
claim has an account: the measured device seconds of its batches, divided by its weight. The next batch is that of the
waiting claim with the smallest account; of equal ones, that of the claim that was served longest ago.

- A claim waits from the time it asks (`may_begin`) until it sends (`begin`), rests or leaves, while its queue has jobs.
- The holder sends further batches while its account, with the expected seconds of its running batches, is smaller than
  those of all waiting claims.
- Idle time gives no credit. A claim that begins to wait is raised to the smallest account of the active claims. If no
  claim is active, it is raised to the largest account.

A turn is granted only when a claim asks. When a batch has ended, or a claim rests or leaves, the claim that is next is
woken, so that it asks again. It then sends a batch, or rests, which wakes the next one. A single claim may always send.

`service.devices.dispatcher` asks for the batches of a device process, and `background` waits for a turn outside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Claim:
    """One model's claim on a device. Without a queue it has a job whenever it asks."""

    turns: DeviceTurns
    queue: Sized | None
    wake: asyncio.Event  # set when its turn has come
    weight: float  # the device seconds that it may use in proportion to those of other claims
    spent: float = 0.0  # its account
    in_flight: int = 0  # batches
    asking: bool = False  # it asked, or ended its last batch, and has neither sent a batch nor rested since
    served: int = 0  # the number of its latest batch among those of the device
    expected: float = math.inf  # the charge for one batch, from the latest one

    @property
    def waiting(self) -> bool:
        """Return whether it waits for its turn with a job."""
        return self.asking and (self.queue is None or len(self.queue) > 0)

    @property
    def active(self) -> bool:
        """Return whether it uses the device or waits for it."""
        return self.in_flight > 0 or self.waiting

    @property
    def rank(self) -> tuple[float, int]:
        """The order of waiting claims: the smallest is next."""
        return self.spent + (self.in_flight * self.expected if self.in_flight else 0.0), self.served

    def may_begin(self) -> bool:
        """Return whether it may send a batch now. If not, `wake` is set when its turn has come."""
        return not self.turns.shared or self.turns.may_begin(self)

    def rest(self) -> None:
        """Give up its turn, because no batch is due. The next claim is woken."""
        if self.asking:
            self.asking = False
            self.turns.wake_next()

    def begin(self) -> None:
        """Count a batch that was sent."""
        self.in_flight += 1
        self.asking = False
        self.turns.began(self)

    def end(self, seconds: float) -> None:
        """Charge a batch that ended after it had used the device for `seconds`. The next claim is woken."""
        self.in_flight -= 1
        self.expected = seconds / self.weight
        self.spent += self.expected
        self.turns.ended(self)

    def leave(self) -> None:
        """Remove the claim with its batches, for example because the process is gone. The next claim is woken."""
        self.turns.leave(self)


class DeviceTurns:
    """The claims on one device."""

    def __init__(self) -> None:
        self.shared = False  # there are several claims
        self._claims: list[Claim] = []
        self._holder: Claim | None = None  # the claim that has batches on the device
        self._served = 0  # batches
        self._background = 0.0  # the account of the last claim without a queue that left

    def join(self, queue: Sized | None, wake: asyncio.Event, *, weight: float = 1.0) -> Claim:
        """Add a claim. Claims without a queue that follow each other continue one account."""
        claim = Claim(self, queue, wake, weight, spent=self._background if queue is None else 0.0)
        self._claims.append(claim)
        self.shared = len(self._claims) > 1
        return claim

    def may_begin(self, claim: Claim) -> bool:
        """Decide whether the device is free for this claim, and whether it is next."""
        if not claim.active:
            self._raise(claim)
        claim.asking = True
        if self._holder not in (None, claim):
            return False
        return min((one for one in self._claims if one.waiting), key=lambda one: one.rank, default=claim) is claim

    def began(self, claim: Claim) -> None:
        """Make the claim the holder."""
        self._holder = claim
        self._served += 1
        claim.served = self._served

    def ended(self, claim: Claim) -> None:
        """Free the device if the holder has no other batch. The holder is expected to ask or rest now."""
        if not claim.in_flight:
            self._holder = None
            claim.asking = claim.queue is not None
        if self.shared:
            self.wake_next()

    def leave(self, claim: Claim) -> None:
        """Remove a claim; again changes nothing."""
        if claim not in self._claims:
            return
        self._claims.remove(claim)
        self.shared = len(self._claims) > 1
        if self._holder is claim:
            self._holder = None
        if claim.queue is None:
            self._background = claim.spent if any(one.active for one in self._claims) else 0.0
        self.wake_next()

    def wake_next(self) -> None:
        """Wake the claim that is next, if the device is free or its own."""
        for claim in self._claims:
            claim.asking = claim.waiting  # a claim whose jobs were taken or cancelled is idle from now on
        waiting = [claim for claim in self._claims if claim.asking and self._holder in (None, claim)]
        if waiting:
            min(waiting, key=lambda claim: claim.rank).wake.set()

    def _raise(self, claim: Claim) -> None:
        """Take the credit from a claim that was idle."""
        active = [one.spent for one in self._claims if one.active]
        level = min(active) if active else max(one.spent for one in self._claims)
        claim.spent = max(claim.spent, level)


class Turns:
    """The devices of one service."""

    def __init__(self) -> None:
        self._devices: dict[str, DeviceTurns] = {}

    def of(self, device: str) -> DeviceTurns:
        """The claims on a device."""
        return self._devices.setdefault(device, DeviceTurns())


@asynccontextmanager
async def background(turns: DeviceTurns, weight: float) -> AsyncIterator[None]:
    """Wait for a turn that has no queue, and hold the device for the time of the block, for example to warm up."""
    wake = asyncio.Event()
    claim = turns.join(None, wake, weight=weight)
    try:
        while not claim.may_begin():
            wake.clear()
            await wake.wait()
        claim.begin()
        began_at = time.monotonic()
        try:
            yield
        finally:
            claim.end(time.monotonic() - began_at)
    finally:
        claim.leave()
