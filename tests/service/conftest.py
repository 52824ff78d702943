"""A running application with a real device process and a tiny model, shared by the tests of a session."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.service import preloaded
from tests.tiny import write_tiny_model

START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """asyncio on uvloop, as in production; one loop for the session, so that fixtures can be shared."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with seven labelled classes."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def _preloaded() -> Iterator[None]:
    """Start device processes quickly."""
    with preloaded.device_processes():
        yield


def settings_for(model: Path, **changes: object) -> Settings:
    """Settings of a test: CPU, one thread, nothing from the environment."""
    return Settings.model_validate({"model": str(model), "device": "cpu", "threads": 1} | changes)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The application's lifespan around a client that calls it in-process; waits until it is ready."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://vim") as client,
    ):
        await until_settled(app)
        yield client


async def until_settled(app: FastAPI) -> None:
    """Wait until the engine is ready or has failed."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while app.state.engine.find().phase == "starting":
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def app(tiny_model: Path) -> FastAPI:
    """The application that a test sends requests to."""
    return create_app(settings_for(tiny_model, max_batch=8, queue_images=64))


@pytest.fixture(scope="session")
async def client(app: FastAPI, anyio_backend: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running application."""
    async with running(app) as client:
        yield client


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which no server listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
