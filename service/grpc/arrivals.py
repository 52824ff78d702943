"""Messages that have not arrived completely. grpc keeps their bytes, which VIM_QUEUE_BYTES does not count.

A call whose message takes longer than VIM_BODY_TIMEOUT_MS is ended. A client could also send the first half of
thousands of messages. So if many messages are awaited and the free memory falls to half, the late ones are ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio
from grpc.aio import ServicerContext

from service.errors import BodyTimeout, EmptyBody, MemoryFull
from service.grpc.gateway import CallError, Running
from service.system import blocking, memory

CHECK_S = 0.25
FEW = 16  # messages; so many may be late whatever memory they take
LATE_S = 1.0

log = logging.getLogger("vim.grpc")


@dataclass(slots=True, eq=False)
class _Wait:
    since: float  # monotonic clock
    patience: asyncio.Timeout
    stopped: bool = False

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.patience.reschedule(0)


class Arrivals:
    """The messages that are awaited."""

    def __init__(
        self,
        timeout_s: float,
        free_bytes: Callable[[], int | None] = memory.free_bytes,
        trim: Callable[[], None] = memory.trim,
    ) -> None:
        self._timeout_s = timeout_s
        self._free_bytes = free_bytes
        self._trim = trim
        self._free_before = free_bytes() or 0  # while few messages were awaited
        self._waits: set[_Wait] = set()
        self._check: asyncio.TimerHandle | None = None
        self._left_behind = False  # freed memory of calls whose message has not arrived
        self._trimming: asyncio.Task[None] | None = None

    async def first(self, messages: AsyncIterator[Any]) -> Any:
        """The message of a call with one request. Raises CallError if there is none in time."""
        message = await self._next(messages, self._timeout_s)
        if message is None:
            raise CallError.of(EmptyBody("the call has no message"))
        return message

    async def each(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of a stream; its client may take its time between two. Raises CallError if memory is short."""
        while (message := await self._next(messages, None)) is not None:
            yield message

    async def _next(self, messages: AsyncIterator[Any], timeout_s: float | None) -> Any:
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(CHECK_S, self._stop_late)
        wait = _Wait(time.monotonic(), asyncio.timeout(timeout_s))
        self._waits.add(wait)
        try:
            async with wait.patience:
                return await anext(messages, None)
        except TimeoutError:
            self._left_behind = True
            raise _late(wait, self._timeout_s) from None
        except asyncio.CancelledError:
            self._left_behind = True
            raise
        finally:
            self._waits.discard(wait)

    def _stop_late(self) -> None:
        self._check = asyncio.get_running_loop().call_later(CHECK_S, self._stop_late) if self._waits else None
        if self._left_behind:
            self._left_behind = False
            self._trimming = asyncio.create_task(blocking.run(self._trim))
        if len(self._waits) <= FEW:
            self._free_before = self._free_bytes() or 0
        elif (self._free_bytes() or 0) < self._free_before / 2:
            latest = time.monotonic() - LATE_S
            late = [one for one in self._waits if one.since < latest]
            log.warning("memory is short: %d calls over gRPC are ended whose messages have not arrived", len(late))
            for one in late:
                one.stop()


def _late(wait: _Wait, timeout_s: float) -> CallError:
    if wait.stopped:
        return CallError.of(MemoryFull("memory is short, and the next message has not arrived", retry_after_s=1))
    setting = f"{round(1000 * timeout_s)} ms (VIM_BODY_TIMEOUT_MS)"
    return CallError.of(BodyTimeout(f"the message did not arrive within {setting}"))


class AwaitingServer:
    """Registers services at a server so that each call awaits its messages here.

    grpc itself would await the message of a call with one request forever. So the server takes each call for a stream
    of messages, which is the same on the wire.
    """

    def __init__(self, server: aio.Server, arrivals: Arrivals, running: Running) -> None:
        self._server = server
        self._arrivals = arrivals
        self._running = running

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: generated code registers the same handlers again, by their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the handlers of a service."""
        awaiting = {name: self._awaiting(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, awaiting),))

    def _awaiting(self, handler: Any) -> Any:
        """The same handler for a stream of messages."""
        codec = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._many(handler), *codec)
        return grpc.stream_unary_rpc_method_handler(self._single(handler), *codec)

    def _single(self, handler: Any) -> Any:
        async def answer(messages: AsyncIterator[Any], context: ServicerContext) -> Any:
            with self._running:
                try:
                    message = await self._arrivals.first(messages)
                except CallError as late:
                    await late.abort(context)
                return await handler.unary_unary(message, context)

        return answer

    def _many(self, handler: Any) -> Any:
        async def answers(messages: AsyncIterator[Any], context: ServicerContext) -> AsyncIterator[Any]:
            late: list[CallError] = []
            try:
                if handler.request_streaming:
                    found = handler.stream_stream(self._arrivals.each(messages), context)
                else:
                    found = handler.unary_stream(await self._arrivals.first(messages), context)
                async for one in found:
                    yield one
            except* CallError as group:
                late += [one for one in group.exceptions if isinstance(one, CallError)]
            for error in late:  # not above: what is raised there becomes a group
                await error.abort(context)

        return answers
