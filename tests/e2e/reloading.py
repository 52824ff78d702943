"""Traffic on two models while versions of them are loaded; every answer must belong to the version that it names."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.e2e.server import Server
from tests.tiny import photo, write_tiny_model

ADMIN = "an-administrators-key"
HEADERS = {"X-API-Key": ADMIN}
MODELS = ("a", "b")
PHOTOS = [photo(seed) for seed in range(4)]
TOLERANCE = 1e-4

Key = tuple[str, str, int]  # model, fingerprint, number of the photograph


def write_repository(folder: Path) -> Path:
    """Two models with two versions each; the images of model b have another size."""
    for name, version in itertools.product(MODELS, (1, 2)):
        size = (64, 64) if name == "a" else (96, 96)
        write_tiny_model(folder / name / str(version), seed=10 * ord(name) + version, image_size=size)
    return folder


def start(log: Path, repository: Path, **settings: Any) -> Server:
    """A server of the repository whose models can be loaded over HTTP."""
    return Server(log, model_repository=repository, model_control="explicit", admin_keys=ADMIN, **settings)


@dataclass
class Traffic:
    """What clients have seen."""

    expected: Mapping[Key, np.ndarray]
    seconds: list[float] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)  # by fingerprint
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    broken: int = 0  # connections

    def check(self, model: str, number: int, response: httpx.Response) -> None:
        """Compare an answer with that of the version which it names."""
        if response.status_code != 200:
            self.lost.append(f"{response.status_code} {response.text[:200]}")
            return
        body = response.json()
        fingerprint = body["model"]["fingerprint"]
        values = np.array(body["results"][0]["embedding"], np.float32)
        self.answered[fingerprint] = self.answered.get(fingerprint, 0) + 1
        known = self.expected.get((model, fingerprint, number))
        if body["model"]["name"] != model or known is None or np.abs(known - values).max() > TOLERANCE:
            self.wrong.append(f"{model} {body['model']}")


async def load(client: httpx.AsyncClient, model: str, version: int) -> httpx.Response:
    """Load this version, as tritonclient does."""
    config = json.dumps({"version_policy": {"specific": {"versions": [version]}}})
    path = f"/v2/repository/models/{model}/load"
    return await client.post(path, json={"parameters": {"config": config}}, headers=HEADERS)


async def serving_version(client: httpx.AsyncClient, model: str) -> int:
    """The version of this model that serves."""
    index = (await client.post("/v2/repository/index", headers=HEADERS)).json()
    (version,) = [one["version"] for one in index if (one["name"], one["state"]) == (model, "READY")]
    return int(version)


async def another_device_process(server: Server, before: Collection[int]) -> int:
    """Wait for a device process that is not one of `before`; returns its id."""
    while not (new := set(server.children()) - set(before)):
        await asyncio.sleep(0.01)
    return new.pop()


async def learn(client: httpx.AsyncClient) -> dict[Key, np.ndarray]:
    """Load every version once; returns its answers. Version 2 of both serves before, version 1 afterwards."""
    found: dict[Key, np.ndarray] = {}
    for version, model in itertools.product((2, 1), MODELS):
        if version == 1:
            (await load(client, model, version)).raise_for_status()
        for number, image in enumerate(PHOTOS):
            body = (await client.post(f"/v1/embed?model={model}", content=image)).json()
            values = np.array(body["results"][0]["embedding"], np.float32)
            found[model, body["model"]["fingerprint"], number] = values
    return found


@contextlib.asynccontextmanager
async def clients(url: str, count: int, traffic: Traffic) -> AsyncIterator[None]:
    """Send requests from this many clients, half of them for each model. Broken connections are counted."""
    stop = asyncio.Event()
    extra = itertools.count()

    async def send(model: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for number in itertools.cycle(range(len(PHOTOS))):
                if stop.is_set():
                    return
                began = time.monotonic()
                image = PHOTOS[number] + next(extra).to_bytes(8, "big")  # not identical to one in flight
                try:
                    response = await client.post(f"/v1/embed?model={model}", content=image)
                except httpx.TransportError:
                    traffic.broken += 1
                    continue
                traffic.seconds.append(time.monotonic() - began)
                traffic.check(model, number, response)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(send(MODELS[number % 2]))
        try:
            yield
        finally:
            stop.set()


def percentile(seconds: Sequence[float], part: float) -> float:
    """The value below which this part of all values is."""
    return sorted(seconds)[int(part * (len(seconds) - 1))]
