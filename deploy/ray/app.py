"""The unmodified application under Ray Serve: one model for each replica, admission and batching its own.

    serve run deploy.ray.app:build            # from the repository root; settings are VIM_ variables
    serve deploy deploy/ray/serve.yaml        # on a cluster that runs

What it costs, and when it is worth that: README.md beside this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingConfig

from service import log
from service.app import create_app
from service.engine.engine import Engine
from service.server.metrics_port import metrics_port
from service.settings import Settings

POLL_S = 0.05
UNBOUNDED = 10_000  # the application itself refuses, in its own words and with Retry-After


class Options(BaseModel):
    """What `serve run deploy.ray.app:build cpus=2` and `args` in a configuration may say."""

    model_config = ConfigDict(extra="forbid")

    cpus: float = 2
    gpus: float | None = None  # for each replica; unset: one, where the cluster has any
    min_replicas: int = 1
    max_replicas: int = 20
    target_ongoing_requests: float = 4  # half of VIM_MAX_BATCH, on a GPU 64: docs/operate/sizing.md


def application() -> FastAPI:
    """Runs in the replica, whose start ends when the model is warm: no request comes before."""
    settings = Settings.load()
    if settings.threads is None:
        settings = settings.model_copy(update={"threads": _cpus()})
    log.configure(settings.log_level)
    app = create_app(settings)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with metrics_port(settings, app.state.engine.metrics), inner(app):
            await _warm(app.state.engine)
            yield

    app.router.lifespan_context = lifespan
    return app


def _cpus() -> int:
    """Those that Ray gave this replica; the machine has more."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


async def _warm(engine: Engine) -> None:
    while engine.find().phase == "starting":  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(POLL_S)
    if failure := engine.failure:
        raise RuntimeError(failure)


@serve.deployment(
    max_queued_requests=-1,
    max_ongoing_requests=UNBOUNDED,
    graceful_shutdown_timeout_s=40,  # more than VIM_DRAIN_TIMEOUT_MS and the device process's 5 s
    health_check_period_s=5,
    health_check_timeout_s=30,
)
@serve.ingress(application)
class VisionMamba:
    """One replica."""

    async def check_health(self) -> None:
        """Fails when the device process could not be brought back: Ray then starts another replica."""
        app: FastAPI = self.app  # type: ignore[attr-defined]  # what serve.ingress adds
        if failure := app.state.engine.backend.state.failure:
            raise RuntimeError(failure)


def build(options: Options) -> serve.Application:
    """The application for `serve run` and `serve deploy`."""
    gpus = options.gpus if options.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    scaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=options.target_ongoing_requests,
        upscale_delay_s=15,
        downscale_delay_s=300,
    )
    resources = {"num_cpus": options.cpus, "num_gpus": gpus}
    deployment: serve.Deployment = VisionMamba  # said for mypy, which does not follow decorators of classes
    return deployment.options(autoscaling_config=scaling, ray_actor_options=resources).bind()
