"""The methods of the service `inference.GRPCInferenceService`, each by a request to the HTTP application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from grpc import StatusCode
from grpc.aio import ServicerContext
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer

from service.errors import ServiceError
from service.grpc.gateway import CallError, Gateway, model_path
from service.grpc.messages import MessageForm, parsed

IN_FLIGHT = 16  # requests of one stream that run or wait to be sent

T = TypeVar("T")


class Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]  # the generated class has no types
    """Answers the calls."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ServerLive(self, _: Any, context: ServicerContext) -> Any:  # noqa: N802 - names of the protocol
        """Whether the server is alive."""
        return pb.ServerLiveResponse(live=await self._holds(context, "/v2/health/live"))

    async def ServerReady(self, _: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Whether the default model can be served."""
        return pb.ServerReadyResponse(ready=await self._holds(context, "/v2/health/ready"))

    async def ModelReady(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Whether a model can be served."""
        return pb.ModelReadyResponse(ready=await self._holds(context, f"{_path(request)}/ready"))

    async def ServerMetadata(self, _: Any, context: ServicerContext) -> Any:  # noqa: N802
        """The server's name, version and extensions."""
        return parsed(await _settled(context, self._gateway.get(context, "/v2")), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Inputs and outputs of a model."""
        content = await _settled(context, self._gateway.get(context, _path(request)))
        return parsed(content, pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """The configuration that perf_analyzer asks for."""
        content = await _settled(context, self._gateway.get(context, f"{_path(request)}/config"))
        return parsed({"config": content}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Statistics of one model, or of all."""
        path = f"{_path(request)}/stats" if request.name else "/v2/models/stats"
        return parsed(await _settled(context, self._gateway.get(context, path)), pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """All known versions of all models."""
        body = json.dumps({"ready": request.ready}).encode()
        reply = await _settled(context, self._gateway.call(context, "POST", "/v2/repository/index", body))
        return parsed({"models": reply.json()}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Load a model, or another version of it."""
        await self._control(context, request, "load")
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Stop serving a model."""
        await self._control(context, request, "unload")
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: ServicerContext) -> Any:  # noqa: N802
        """Scores, embedding and label of each image."""
        return await _settled(context, self._infer(request, context))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: ServicerContext) -> AsyncIterator[Any]:  # noqa: N802
        """The same for many requests on one stream; each is answered when it is finished, with its id.

        An error ends only its own request. At most IN_FLIGHT requests run or wait until the client reads.
        """
        room = asyncio.Semaphore(IN_FLIGHT)
        finished: asyncio.Queue[Any] = asyncio.Queue()

        async def one(request: Any) -> None:
            try:
                answer = pb.ModelStreamInferResponse(infer_response=await self._infer(request, context))
            except CallError as failed:
                answer = pb.ModelStreamInferResponse(error_message=f"{failed.code.name}: {failed.detail}")
                answer.infer_response.id = request.id
            finished.put_nowait(answer)

        async def read(group: asyncio.TaskGroup) -> None:
            running = []
            async for request in requests:
                await room.acquire()
                running.append(group.create_task(one(request)))
            await asyncio.gather(*running)
            finished.put_nowait(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read(group))
            while (answer := await finished.get()) is not None:
                yield answer
                room.release()

    async def _unsupported(self, _: Any, context: ServicerContext) -> None:
        await context.abort(StatusCode.UNIMPLEMENTED, "shared memory, logging and trace settings are not supported")

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _unsupported
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _unsupported
    TraceSetting = LogSettings = _unsupported

    async def _infer(self, request: Any, context: ServicerContext) -> Any:
        try:
            form = MessageForm(request)
        except ServiceError as error:
            raise CallError.of(error) from error
        await self._gateway.infer(context, request.model_name, request.model_version, form)
        return form.answer

    async def _control(self, context: ServicerContext, request: Any, action: str) -> None:
        config = request.parameters["config"].string_param if "config" in request.parameters else None
        body = json.dumps({"parameters": {} if config is None else {"config": config}}).encode()
        path = f"/v2/repository/models/{request.model_name}/{action}"
        await _settled(context, self._gateway.call(context, "POST", path, body))

    async def _holds(self, context: ServicerContext, path: str) -> bool:
        """False if the application answers that it is not ready. Another error ends the call."""
        try:
            await self._gateway.get(context, path)
        except CallError as failed:
            if failed.code is not StatusCode.UNAVAILABLE:
                await failed.abort(context)
            return False
        return True


async def _settled(context: ServicerContext, work: Awaitable[T]) -> T:
    """Await the work; end the call with its error."""
    try:
        return await work
    except CallError as failed:
        await failed.abort(context)


def _path(request: Any) -> str:
    return model_path(request.name, request.version)
