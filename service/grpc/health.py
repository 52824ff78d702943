"""The standard health service (`grpc.health.v1.Health`), for Kubernetes' gRPC probes and for balancers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc import StatusCode
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.grpc.gateway import CallError, Gateway

SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
POLL_S = 0.5  # of Watch

Status = health_pb2.HealthCheckResponse


def add_health(server: Any, gateway: Gateway) -> None:
    """Add the service to a server."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(gateway), server)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the generated class has no types
    """The service "" is the default model, and another name that of a model, which needs a key if calls do."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Check(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802 - names of the protocol
        """The state now; NOT_FOUND for an unknown name."""
        status = await self._status(request.service, context)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(StatusCode.NOT_FOUND, f"there is no model {request.service[:100]!r}")
        return Status(status=status)

    async def Watch(self, request: Any, context: ServicerContext) -> AsyncIterator[Any]:  # noqa: N802
        """The state now, and again whenever it changes."""
        last = None
        while True:
            status = await self._status(request.service, context)
            if status != last:
                last = status
                yield Status(status=status)
            await asyncio.sleep(POLL_S)

    async def _status(self, name: str, context: ServicerContext) -> Any:
        path = f"/v2/models/{name}/ready" if name else "/v2/health/ready"
        try:
            await self._gateway.get(context, path)
        except CallError as failed:
            if failed.code is StatusCode.UNAUTHENTICATED:  # only the default model is told without a key
                await failed.abort(context)
            return Status.SERVICE_UNKNOWN if failed.code is StatusCode.NOT_FOUND else Status.NOT_SERVING
        return Status.SERVING
