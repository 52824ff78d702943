"""The gRPC server of one HTTP process: VIM_GRPC_PORT, TLS, keys, health, reflection, and the end of calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import StatusCode, aio
from grpc.aio import ServicerContext
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from service.api.auth import has_key, known_keys
from service.grpc.arrivals import Arrivals, AwaitingServer
from service.grpc.gateway import App, Gateway, as_bytes
from service.grpc.health import SERVICE as HEALTH
from service.grpc.health import add_health
from service.grpc.servicer import Servicer
from service.settings import Settings

SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
CALLS = 256  # of one connection at the same time; its client queues further ones
LINGER_S = 0.1  # to send the last answers
HEADER_BYTES = 1 << 16  # more than a message adds to the bodies that VIM_MAX_BODY_BYTES allows
# Orchestrators call these without a key.
_PROBES = {f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady", f"/{HEALTH}/Check", f"/{HEALTH}/Watch"}


@asynccontextmanager
async def grpc_server(app: App, infer_app: App, settings: Settings, connections: int) -> AsyncIterator[None]:
    """Serve calls until the end of the context, then finish open ones within VIM_DRAIN_TIMEOUT_MS.

    `infer_app` answers the requests to infer, `app` all others. Connections beyond this number are closed at once.

    Raises OSError if the port is taken.
    """
    gateway = Gateway(app, infer_app, "https" if settings.tls_cert else "http")
    server = aio.server(interceptors=_interceptors(settings), options=_options(settings, connections))
    services = AwaitingServer(server, Arrivals(settings.body_timeout_ms / 1000), gateway.running)
    add_GRPCInferenceServiceServicer_to_server(Servicer(gateway), services)
    add_health(services, gateway)
    names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
    add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), services)
    _listen(server, settings)
    await server.start()
    try:
        yield
    finally:
        await _stop(server, gateway, settings.drain_timeout_ms / 1000)


async def _stop(server: aio.Server, gateway: Gateway, patience_s: float) -> None:
    """Refuse new calls, finish the running requests, then end the streams that are still open."""
    refusing = asyncio.create_task(server.stop(patience_s))
    await gateway.running.idle(patience_s)
    await asyncio.sleep(LINGER_S)
    await server.stop(None)
    await refusing


def _options(settings: Settings, connections: int) -> list[tuple[str, int]]:
    """The arguments of the server. grpc itself ends connections that send too many pings or malformed frames."""
    return [
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", CALLS),
        ("grpc.server_handshake_timeout_ms", settings.header_timeout_ms),
        ("grpc.keepalive_time_ms", settings.keep_alive_ms),
        ("grpc.max_receive_message_length", settings.max_body_bytes + HEADER_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_connection_idle_ms", settings.keep_alive_ms),
        ("grpc.so_reuseport", int(settings.http_workers > 1)),
    ]


def _listen(server: aio.Server, settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if settings.tls_cert and settings.tls_key:
            pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"{address} cannot be opened: {error}") from error


def _interceptors(settings: Settings) -> list[Any]:
    known = known_keys(settings)
    return [_Keys(known)] if known else []


class _Keys(aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without a known key, before their message arrives."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the handler of the call, or one that refuses it."""
        headers = [(as_bytes(name), as_bytes(value)) for name, value in details.invocation_metadata or ()]
        if details.method in _PROBES or has_key({"headers": headers}, self._known):
            return await continuation(details)
        return grpc.stream_unary_rpc_method_handler(_refuse)  # such a handler begins before the message arrives


async def _refuse(_: AsyncIterator[bytes], context: ServicerContext) -> None:
    await context.abort(
        StatusCode.UNAUTHENTICATED,
        "this server requires an API key as metadata: authorization: Bearer KEY, or x-api-key: KEY",
        (("error-code", "unauthorized"),),
    )
