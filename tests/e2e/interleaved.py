"""Good images among bad ones: each must get the answer of a run without bad ones."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL

from tests.e2e.server import ROOT
from tests.e2e.traffic import Client, Reply
from tests.tiny import photo

PILLOW = ROOT / ".cache" / f"pillow-{PIL.__version__}.tar.gz"
TOLERANCE = 1e-5
GOOD = [photo(seed) for seed in range(8)]
PATH = "/v1/classify?top_k=7"


@dataclass
class Ledger:
    """The statuses of bad images, and how much the answers to good ones differed from the expected ones."""

    bad: Counter[int] = field(default_factory=Counter)
    good: int = 0
    changed: int = 0  # by a bit
    apart: float = 0.0  # the largest difference of a score
    failed: list[str] = field(default_factory=list)

    def enter(self, reply: Reply, expected: np.ndarray) -> None:
        """Compare the answer to a good image."""
        if reply.status != 200:
            self.failed.append(f"{reply.status} {str(reply.body)[:200]}")
            return
        found = _scores(reply.body)
        self.good += 1
        self.changed += not np.array_equal(found, expected)
        self.apart = max(self.apart, float(np.abs(found - expected).max()))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.bad.items()))
        return (
            f"{counts}; {self.good} good ones between them, {self.changed} changed by a bit, {self.apart:.1g} at most"
        )


def pillow_images(*, fetch: bool = False) -> list[bytes]:
    """The test images of the installed Pillow's source package, which is downloaded to .cache; [] if it is missing."""
    if fetch and not PILLOW.is_file():
        PILLOW.parent.mkdir(exist_ok=True)
        wanted = ["--no-deps", "--no-binary", ":all:", f"pillow=={PIL.__version__}", "--dest", str(PILLOW.parent)]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
    if not PILLOW.is_file():
        return []
    with tarfile.open(PILLOW) as archive:
        members = [one for one in archive.getmembers() if one.isfile() and "/Tests/images/" in one.name]
        return [file.read() for one in members if isinstance(file := archive.extractfile(one), io.BufferedReader)]


async def interleave(url: str, bad: Sequence[bytes], clients: int) -> Ledger:
    """Send all bad images, each followed by a good one, with `clients` clients at once."""
    ledger, first = Ledger(), Client(url)
    expected = [_scores((await first.post(path=PATH, body=image)).body) for image in GOOD]
    await first.close()
    turns = iter(enumerate(bad))

    async def one_client() -> None:
        client = Client(url)
        for turn, body in turns:
            ledger.bad[(await client.post(path=PATH, body=body)).status] += 1
            number = turn % len(GOOD)
            ledger.enter(await client.post(path=PATH, body=GOOD[number]), expected[number])
        await client.close()

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return ledger


def _scores(body: Any) -> np.ndarray:
    """Scores by class, in any order."""
    predictions = body["results"][0]["predictions"]
    return np.array([one["score"] for one in sorted(predictions, key=lambda one: one["index"])])
