"""Metrics on a separate port: without a key, with the connection limits of the main port."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from service.server.metrics_port import metrics_port
from service.telemetry.metrics import Metrics
from tests.service.conftest import settings_for

pytestmark = pytest.mark.anyio


async def test_metrics_may_have_a_port_of_their_own(unused_port: int) -> None:
    """The metrics port serves the metrics without a key, and no other paths."""
    settings = settings_for(Path("any"), api_keys="first-key-of-the-test", metrics_port=unused_port)
    async with (
        metrics_port(settings, Metrics(queue_capacity=1)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_port}") as scraper,
    ):
        page = (await scraper.get("/metrics")).text
        statuses = [(await scraper.get(path)).status_code for path in ("/", "/v1/models")]

    assert "vim_queue_capacity 1.0" in page
    assert "_created" not in page
    assert [200, 404] == statuses


async def test_the_metrics_port_has_its_time_limits(unused_port: int) -> None:
    """The metrics port closes connections that send no complete header in time."""
    settings = settings_for(Path("any"), metrics_port=unused_port, header_timeout_ms=200)
    async with metrics_port(settings, Metrics(queue_capacity=1)):
        half = [await _ended(unused_port, sent) for sent in (b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")]

    assert (b"", b"HTTP/1.1 408 ") == (half[0], half[1][:13])


async def test_without_the_setting_there_is_no_port() -> None:
    """Without VIM_METRICS_PORT no second port is opened."""
    async with metrics_port(settings_for(Path("any")), Metrics(queue_capacity=1)):
        pass


async def _ended(port: int, sent: bytes) -> bytes:
    """Everything that is received until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    received = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return received
