"""Request -> image bytes and options, within the limits. Does not decode images; that is `service.images.decode`.

The form of a body is decided by its header if that says multipart, else by the first bytes if they are an image's, else
it must be JSON. Whatever way an image comes in, the same bytes go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.api.request import multipart
from service.api.request.image_fields import Item, from_text
from service.api.request.json_body import load_object
from service.engine.admission import Body
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmptyBody,
    InvalidOptions,
    MalformedBody,
    TooManyImages,
)
from service.images.formats import sniff
from service.jobs import RequestClass

Options = TypeVar("Options", bound=BaseModel)
T = TypeVar("T")

LARGE = 1 << 20  # bytes of a body; to copy so many takes milliseconds, where memory is new many of them
MOST_FIELD_BYTES = 1000  # of an option in a form
_LONGEST_NAME = 100  # of an option, in an answer
_MOST_ERRORS = 20  # in an answer

IMAGE_FIELDS = {"image", "images", "file", "files"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The images of a request in order, and the options that came in its body."""

    images: list[Item]
    fields: Mapping[str, Any]


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; when the client leaves before that, the work is cancelled and ClientDisconnect raised.

    Only once the body has been read: until then the same messages are the body.
    """
    serving = asyncio.current_task()
    assert serving is not None
    gone = asyncio.create_task(_cancel_when_gone(request, serving))
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done():  # somebody else's wish
            raise
        serving.uncancel()
        raise ClientDisconnect from None
    finally:
        gone.cancel()


def timeout_s(request: Request, longest_ms: int) -> float:
    """Seconds for an answer: `X-Request-Timeout-Ms`, at most VIM_REQUEST_TIMEOUT_MS. Raises InvalidOptions."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return longest_ms / 1000
    if not given.isascii() or not given.isdigit() or int(given[:12]) < 1:
        raise InvalidOptions(
            f"X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1; got {given[:40]!r}"
        )
    return min(int(given[:12]), longest_ms) / 1000


def request_class(request: Request) -> RequestClass:
    """Its class, as `X-Request-Class` says; interactive when it says nothing. Raises InvalidOptions."""
    given = request.headers.get("x-request-class", "interactive").strip().lower()
    if given not in get_args(RequestClass):
        raise InvalidOptions(f"X-Request-Class must be one of {', '.join(get_args(RequestClass))}; got {given[:100]!r}")
    return cast(RequestClass, given)


async def _cancel_when_gone(request: Request, serving: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    serving.cancel()


async def read_body(request: Request, max_bytes: int, account: Body, timeout_s: float) -> bytes:
    """The whole body, counted while it streams in, so that neither a missing nor a false length gets past the limit.

    Raises BodyTooLarge, EmptyBody, BodyTimeout; before the first byte, and while they arrive, what `account` raises;
    ClientDisconnect when the client leaves in the middle.
    """
    declared = request.headers.get("content-length", "")
    declared = declared if declared.isascii() and declared.isdigit() else ""
    if declared and int(declared[:20]) > max_bytes:
        raise _too_large(f"{declared[:20]} bytes", max_bytes)
    account.expect(int(declared[:20] or 0))
    try:
        async with asyncio.timeout(timeout_s):
            body = await _streamed(request, max_bytes, account)
    except TimeoutError:
        setting = f"{round(1000 * timeout_s)} ms (VIM_BODY_TIMEOUT_MS)"
        raise BodyTimeout(f"the body did not arrive within {setting}") from None
    if not body:
        raise EmptyBody("the body is empty; send the bytes of an image, a multipart form or JSON")
    return body


async def _streamed(request: Request, max_bytes: int, account: Body) -> bytes:
    parts = []
    async for part in request.stream():
        account.receive(len(part))
        if account.size > max_bytes:
            raise _too_large(f"more than {max_bytes} bytes", max_bytes)
        parts.append(part)
    # Large ones beside the event loop: CPython lets go of its lock while it copies megabytes.
    return b"".join(parts) if account.size < LARGE else await asyncio.to_thread(b"".join, parts)


def parse(body: bytes, content_type: str, max_images: int) -> Inputs:
    """Find the images in a body. A bad item is an error in its place; a bad body raises ServiceError."""
    if content_type.strip().lower().startswith("multipart/form-data"):
        found = _from_multipart(body, content_type, max_images)
    elif sniff(body) is not None:
        found = Inputs([body], {})
    else:
        found = _from_json(body, max_images)
    check_count(len(found.images), max_images)
    return found


def check_count(images: int, max_images: int) -> None:
    """Raise EmptyBody or TooManyImages for a request of so many images."""
    if not images:
        raise EmptyBody("the request holds no image")
    if images > max_images:
        raise TooManyImages(f"{images} images in one request; the limit is {max_images} (VIM_MAX_IMAGES)")


def needs_parsing(body: bytes, content_type: str) -> bool:
    """False for a bare image, which costs nothing; the rest belongs in a thread."""
    return content_type.strip().lower().startswith("multipart/") or sniff(body) is None


def validate(schema: type[Options], query: Mapping[str, str], fields: Mapping[str, Any]) -> Options:
    """Options from the query and the body. Raises InvalidOptions naming each wrong one; no option is ignored."""
    if twice := sorted(query.keys() & fields.keys()):
        names = ", ".join(name[:_LONGEST_NAME] for name in twice)
        raise InvalidOptions(f"given in the query and in the body: {names}")
    try:
        return schema.model_validate({**query, **fields})
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidOptions:
    found = [
        {"loc": ".".join(map(str, e["loc"]))[:_LONGEST_NAME], "msg": _message(e["type"], e["msg"])}
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = [f"and {len(found) - _MOST_ERRORS} more"] if len(found) > _MOST_ERRORS else []
    shown = found[:_MOST_ERRORS]
    return InvalidOptions("; ".join([*(f"{e['loc']}: {e['msg']}" for e in shown), *more]), errors=shown)


def _message(kind: str, text: str) -> str:
    return "unknown option" if kind == "extra_forbidden" else text


def _too_large(found: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {found}; the limit is {limit} (VIM_MAX_BODY_BYTES)")


def _from_multipart(body: bytes, content_type: str, max_images: int) -> Inputs:
    images: list[Item] = []
    fields: dict[str, str] = {}
    for part in multipart.parts(body, content_type, max_images):
        if part.is_file or part.name in IMAGE_FIELDS:
            images.append(part.data)
        elif len(part.data) > MOST_FIELD_BYTES:
            raise MalformedBody(f"the option {part.name[:_LONGEST_NAME]!r} has more than {MOST_FIELD_BYTES} bytes")
        else:
            fields[part.name] = part.data.decode("utf-8", "replace")
    return Inputs(images, fields)


def _from_json(body: bytes, max_images: int) -> Inputs:
    content = load_object(body, max_images)
    if "images" not in content:
        raise MalformedBody('the JSON body must be an object with "images", a list of base64 strings')
    images = content.pop("images")
    if not isinstance(images, list):
        raise MalformedBody('"images" must be a list of base64 strings or data URIs')
    check_count(len(images), max_images)
    return Inputs([from_text(item) for item in images], content)
