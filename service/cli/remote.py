"""Ask a running server: one image per request, several requests at once. No other command uses httpx.

When the server is busy or not ready, the request is sent again after the time that it asks for, a limited number of
times.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np

from service.cli.backend import Ask, Backend, Classified, CommandError, Embedded, Failed, Model, Outcome

IN_FLIGHT = 16
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 30.0
TRIES = 10
_LOST_TRIES = 3  # a connection that broke: the server may have closed an idle one
_FORM_BYTES = 1024  # more than a form adds to its file
_BUSY = {429, 503}
_UNKNOWN_MODEL = "model_not_found"
_EVERY_IMAGE = {"no_classifier", "unauthorized", "not_found", "method_not_allowed", _UNKNOWN_MODEL}
_TIMEOUT = httpx.Timeout(120, connect=10, pool=None)


class Remote:
    """A backend that is a server at a URL. Without `options` the server uses its default model."""

    def __init__(
        self, client: httpx.AsyncClient, info: dict[str, Any], in_flight: int, options: dict[str, str]
    ) -> None:
        self._client = client
        # Older servers have one model and no such option.
        self._options = options if "models" in info else {}
        self._info = info
        self._in_flight = in_flight
        self._max_bytes = max(1, int(info["limits"]["max_body_bytes"]) - _FORM_BYTES)

    @property
    def info(self) -> dict[str, Any]:
        """The first answer to `/info`."""
        return self._info

    @property
    def max_bytes(self) -> int:
        """The limit of the server, which may close the connection when a larger file arrives; so none is sent."""
        return self._max_bytes

    @property
    def in_flight(self) -> int:
        """The number of requests at once."""
        return self._in_flight

    async def infer(self, data: bytes, ask: Ask) -> Outcome:
        """Post one image as a form, because the server could take a body that is not an image for JSON."""
        request = self._client.build_request(
            "POST",
            f"v1/{ask.op}",
            params={**_options(ask), **self._options},
            files={"file": ("image", data, "application/octet-stream")},
        )
        response = await _send(self._client, request, _LOST_TRIES)
        if response.status_code != httpx.codes.OK:
            return _failed(response)
        try:
            return _outcome(response.json(), ask)
        except (ValueError, LookupError, TypeError, binascii.Error) as error:
            raise _unexpected(response) from error


@asynccontextmanager
async def remote(url: str, in_flight: int | None, key: str = "", model: str | None = None) -> AsyncIterator[Backend]:
    """Connect to a server, for one of its models or the default one.

    Raises CommandError when it does not answer, is another program, refuses the key, or does not have the model.
    """
    options = {} if model is None else {"model": model}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, headers=headers) as client:
        response = await _send(client, client.build_request("GET", "info", params=options), 1)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise CommandError(f"{client.base_url} refuses {'this' if key else 'to answer without an'} API key (--key)")
        if _json(response).get("code") == _UNKNOWN_MODEL:
            raise CommandError(_detail(response))
        try:
            backend = Remote(client, response.raise_for_status().json(), in_flight or IN_FLIGHT, options)
            name = Model.of(backend.info["model"]).name
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
            raise _unexpected(response) from error
        if model not in (None, name):  # older servers do not read the option
            raise CommandError(f"{client.base_url} has no model {model!r}; it has {name}")
        yield backend


async def send_head(url: str, key: str, name: str, data: bytes) -> str:
    """Add or replace a custom head of a server; returns its address. Raises CommandError with the server's reason."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, headers=headers) as client:
        request = client.build_request("PUT", f"v1/heads/{name}", content=data)
        response = await _send(client, request, 1)
        if response.status_code != httpx.codes.OK:
            raise CommandError(f"{client.base_url} did not take the head: {response.status_code} {_detail(response)}")
        return str(request.url)


async def _send(client: httpx.AsyncClient, request: httpx.Request, lost_tries: int) -> httpx.Response:
    """Send the request again until the server is not busy. Raises CommandError with the last answer."""
    reason = ""
    for attempt in range(TRIES):
        try:
            response = await client.send(request)
        except httpx.TransportError as error:
            reason = f"no answer from {client.base_url}: {error or type(error).__name__}"
            if attempt + 1 >= lost_tries:
                break
            await asyncio.sleep(wait_s(attempt, None))
            continue
        if response.status_code not in _BUSY:
            return response
        reason = f"{client.base_url} answers {response.status_code} after {attempt + 1} tries: {_detail(response)}"
        if attempt + 1 < TRIES:
            await asyncio.sleep(wait_s(attempt, response.headers.get("Retry-After")))
    raise CommandError(reason)


def wait_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next try: exponential back-off, and not before the server's Retry-After (seconds)."""
    asked_s = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0
    return min(LONGEST_WAIT_S, max(math.ldexp(FIRST_WAIT_S, attempt), asked_s))


def _options(ask: Ask) -> dict[str, str | int]:
    # The default is not sent, because older servers do not know the option.
    crop: dict[str, str | int] = {} if ask.crop == "center" else {"crop": ask.crop}
    if ask.op == "classify":
        return {"top_k": ask.top_k} | crop
    return {"pooling": ask.pooling, "normalize": str(ask.normalize).lower(), "encoding": "base64"} | crop


def _outcome(body: dict[str, Any], ask: Ask) -> Outcome:
    model, result = Model.of(body["model"]), body["results"][0]
    if ask.op == "classify":
        return Classified(model, [_prediction(one) for one in result["predictions"]])
    return Embedded(model, np.frombuffer(base64.b64decode(result["embedding"]), "<f4").astype(np.float32))


def _prediction(one: dict[str, Any]) -> dict[str, Any]:
    return {"index": int(one["index"]), "label": str(one["label"]), "score": float(one["score"])}


def _failed(response: httpx.Response) -> Failed:
    """The error of this image. Raises CommandError for an error that every image would get."""
    body = _json(response)
    code = body.get("code")
    if not isinstance(code, str):
        raise _unexpected(response)
    if code in _EVERY_IMAGE:
        raise CommandError(_detail(response))
    return Failed(code, _detail(response))


def _unexpected(response: httpx.Response) -> CommandError:
    place = response.headers.get("Location")
    hint = f" and points to {place}" if place else ""
    return CommandError(
        f"{response.request.url} does not answer as this server does: {response.status_code} "
        f"{response.headers.get('Content-Type', 'without a type')}{hint}"
    )


def _detail(response: httpx.Response) -> str:
    return str(_json(response).get("detail") or response.reason_phrase)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
