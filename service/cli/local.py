"""Answer images without a server: an engine and its device process, while the command runs.

Settings, decoding, batching and the device process are those of the server, so the answers are the same. Only the
device process imports torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service import __version__
from service.api.responses import normalised, top_k
from service.cli.backend import Ask, Backend, Classified, CommandError, Embedded, Failed, Model, Outcome
from service.engine.engine import Engine
from service.engine.models import described
from service.errors import ServiceError
from service.jobs import Result, Task
from service.registry.registry import Registry
from service.settings import Settings
from service.telemetry.metrics import Metrics

_NEVER_MS = 7 * 24 * 3600 * 1000  # a slow device must not cause a time-out
_FEW = 8  # with fewer images, warming up larger batches costs more than it saves
_POLL_S = 0.02


class Local:
    """A backend with a ready engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.find()
        model = described(self._state)
        self._labels = model.labels
        self._model = Model(model.name, model.fingerprint)

    @property
    def info(self) -> dict[str, Any]:
        """The content of `/info`, with the limits that apply here."""
        settings = self._engine.settings
        limits = {
            "max_batch": self._state.max_batch,
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
        }
        return self._state.to_json() | {"limits": limits, "version": __version__}

    @property
    def max_bytes(self) -> int:
        """The limit of the server."""
        return self._engine.settings.max_body_bytes

    @property
    def in_flight(self) -> int:
        """Enough for one batch on the device and one that is being decoded."""
        return min(2 * self._state.max_batch, self._engine.settings.queue_images)

    async def infer(self, data: bytes, ask: Ask) -> Outcome:
        """Answer one image with the engine."""
        outcome = await self._outcome(data, Task(ask.op, ask.pooling, crop=ask.crop))
        if isinstance(outcome, ServiceError):
            return Failed(outcome.code, outcome.detail)
        if ask.op == "classify":
            return Classified(self._model, top_k(outcome.values, ask.top_k, self._labels))
        return Embedded(self._model, normalised(outcome.values) if ask.normalize else outcome.values)

    async def _outcome(self, data: bytes, task: Task) -> Result | ServiceError:
        try:
            deadline = time.monotonic() + self._engine.settings.request_timeout_ms / 1000
            return (await self._engine.infer([data], task, deadline)).outcomes[0]
        except ServiceError as error:  # of the request, so every other image would get it too
            raise CommandError(error.detail) from error


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[Backend]:
    """Load the model and wait until it is warm. Raises CommandError with the reason when it cannot be served."""
    async with local_engine(settings) as engine:
        yield Local(engine)


@asynccontextmanager
async def local_engine(settings: Settings) -> AsyncIterator[Engine]:
    """A warm engine."""
    logging.getLogger("vim.pool").addFilter(_has_traceback)
    metrics = Metrics(queue_capacity=settings.queue_images)
    engine = Engine(settings, metrics, Registry(settings, metrics))
    try:
        engine.start()
        await _wait_until_ready(engine)
        yield engine
    finally:
        await engine.close()


def settings_for(settings: Settings, images: int, batch: int | None) -> Settings:
    """The server's settings with no time-out, and with batches that suit the number of images.

    With `images` 0 the batch size stays as it is.
    """
    few = images if 0 < images < _FEW and settings.max_batch is None else settings.max_batch
    max_batch = batch or few
    changes = {
        "max_batch": max_batch,
        "queue_images": max(settings.queue_images, 2 * (max_batch or 0)),
        "request_timeout_ms": _NEVER_MS,
        "log_level": settings.log_level if "log_level" in settings.model_fields_set else "warning",
    }
    return settings.model_copy(update=changes)


async def _wait_until_ready(engine: Engine) -> None:
    """Wait until the engine is ready. Raises CommandError when it has failed."""
    while engine.find().phase not in ("ready", "failed"):  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(_POLL_S)
    if engine.failure:
        raise CommandError(engine.failure)


def _has_traceback(record: logging.LogRecord) -> bool:
    """Keep only log records that the command does not report itself."""
    return record.exc_info is not None
