"""The requests of the client: send, wait, repeat, and groups of images over /v1/bulk. Independent of numpy."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Item = dict[str, Any]  # a line of a response of /v1/bulk

LONGEST_WAIT_S = 30.0
FIRST_WAIT_S = 0.25
BUSY = {429, 503}
LOST_TRIES = 3  # after a lost connection: the server may have closed an idle one


class ClientError(Exception):
    """The base of this client's exceptions. Each message is one line."""


class ServerError(ClientError):
    """An error response of the server: `status`, `code` (stable), `detail`, `request_id`, `retry_after`."""

    def __init__(
        self, status: int, code: str, detail: str, request_id: str = "", retry_after: str | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {detail}" if status else detail)
        self.status, self.code, self.detail = status, code, detail
        self.request_id, self.retry_after = request_id, retry_after


class UnreachableError(ServerError):
    """There was no response, or not a complete one; `status` is 0."""

    def __init__(self, url: object, reason: Exception) -> None:
        super().__init__(0, "unreachable", f"no answer from {url}: {str(reason) or type(reason).__name__}")


class Wire:
    """Sends requests with httpx; repeats each while the server is busy or the connection is lost."""

    def __init__(self, http: httpx.AsyncClient, tries: int) -> None:
        self.http = http
        self._tries = tries

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The response. Raises ServerError with the last error response."""
        return await self._insist(lambda: self._once(request))

    async def read(self, request: httpx.Request, read: Callable[[httpx.Response], T]) -> T:
        """Send the request and return `read(response)`. Raises ServerError, also if another program answered."""
        answer = await self.send(request)
        try:
            return read(answer)
        except (ValueError, LookupError, TypeError):
            what = f"{request.url} does not answer as this server does"
            raise ServerError(answer.status_code, "unexpected", what) from None

    async def together(self, bodies: Sequence[bytes], options: Mapping[str, Any]) -> list[Item | ServerError]:
        """One line of /v1/bulk for each image. Repeats the request for the images without an answer only: those after
        the point where the stream was cut off, and those the server was too busy for.
        """
        answers: dict[int, Item | ServerError] = {}
        try:
            await self._insist(lambda: self._stream(bodies, options, answers))
        except ServerError as error:
            return [answers.get(number, error) for number in range(len(bodies))]
        return [answers[number] for number in range(len(bodies))]

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in itertools.count(1):
            try:
                return await ask()
            except httpx.RequestError as error:
                if attempt >= min(self._tries, LOST_TRIES):
                    raise UnreachableError(
                        self.http.base_url, error
                    ) from None  # its traceback is 40 lines of libraries
                pause_s = wait_s(attempt - 1, None)
            except ServerError as error:
                if attempt >= self._tries or error.status not in BUSY:
                    raise
                pause_s = wait_s(attempt - 1, error.retry_after)
            await asyncio.sleep(pause_s)
        raise AssertionError

    async def _once(self, request: httpx.Request) -> httpx.Response:
        answer = await self.http.send(request)
        if not answer.is_success:
            raise _problem(answer)
        return answer

    async def _stream(
        self, bodies: Sequence[bytes], options: Mapping[str, Any], answers: dict[int, Item | ServerError]
    ) -> None:
        """Request the images that are not in `answers`, and add what arrives. Raises if some are still missing."""
        numbers = [number for number in range(len(bodies)) if number not in answers]
        if not numbers:
            return
        content = await asyncio.to_thread(_lines, [bodies[number] for number in numbers])
        headers = {"Content-Type": "application/x-ndjson"}
        async with self.http.stream("POST", "v1/bulk", params=options, content=content, headers=headers) as answer:
            if not answer.is_success:
                await answer.aread()
                raise _problem(answer)
            received = bytearray()
            try:
                async for part in answer.aiter_bytes():
                    received += part
            finally:
                busy = _enter(bytes(received), numbers, answers, answer.headers)
        if busy is not None:
            raise busy
        if len(answers) < len(bodies):
            raise httpx.RemoteProtocolError("the stream ended before its last line")


def wait_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next try: longer each time, at least `retry_after`, at most LONGEST_WAIT_S."""
    return min(LONGEST_WAIT_S, max(math.ldexp(FIRST_WAIT_S, attempt), _seconds(retry_after)))


def _seconds(retry_after: str | None) -> float:
    """Seconds of a Retry-After header (RFC 9110: seconds or a date); 0 if it is missing or cannot be read."""
    if not retry_after:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _problem(answer: httpx.Response) -> ServerError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    known: dict[str, Any] = body if isinstance(body, dict) else {}
    detail = str(known.get("detail") or answer.reason_phrase)
    code = str(known.get("code") or "unknown")
    headers = answer.headers
    return ServerError(answer.status_code, code, detail, headers.get("X-Request-ID", ""), headers.get("Retry-After"))


def _lines(bodies: Sequence[bytes]) -> bytes:
    return b"".join(b'{"image":"%b"}\n' % base64.b64encode(body) for body in bodies)


def _enter(
    received: bytes, numbers: Sequence[int], answers: dict[int, Item | ServerError], headers: httpx.Headers
) -> ServerError | None:
    """Add the complete lines to `answers`, except those with a busy error; returns the first busy error."""
    busy: list[ServerError] = []
    for line in received.split(b"\n")[:-1]:
        item: Item = json.loads(line)
        number, said = numbers[item["index"]], item.get("error")
        if said is None:
            answers[number] = item | {"fingerprint": headers["X-Model-Fingerprint"]}
            continue
        error = ServerError(said["status"], said["code"], said["message"], headers.get("X-Request-ID", ""))
        if error.status in BUSY:
            busy.append(error)
        else:
            answers[number] = error
    return next(iter(busy), None)
