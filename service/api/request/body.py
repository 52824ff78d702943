"""Reads the body of a request within the limits and finds its images and options. It does not decode images.

A body is multipart if its Content-Type says so. Otherwise it is an image if its first bytes are those of an image
format; else it must be JSON. The form of the body does not change the result for an image.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.api.dependencies import choose, choose_early, choose_heads, heads_of, in_thread
from service.api.record import KEY, RequestRecord
from service.api.request import content_encoding, multipart
from service.api.request.image_fields import from_text
from service.api.request.json_body import load_object
from service.api.schemas import ClassesOptions, ImageOptions
from service.engine.admission import BodyAccount
from service.engine.engine import Engine
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmptyBody,
    InvalidOptions,
    MalformedBody,
    TooManyImages,
)
from service.heads.scoring import MOST_HEADS
from service.images.formats import sniff
from service.jobs import Given, RequestClass, Task
from service.system import blocking

Options = TypeVar("Options", bound=BaseModel)
Native = TypeVar("Native", bound=ImageOptions)

LARGE = 1 << 20  # bytes; copying a body of this size takes milliseconds, longer into new memory
MOST_FIELD_BYTES = 1000  # the longest option in a form
_LONGEST_NAME = 100  # an error shows this many characters of an option's name
_MOST_ERRORS = 20  # an error lists this many wrong options

REPEATED = {"head"}  # options that may be given several times
IMAGE_FIELDS = {"image", "images", "file", "files"}
_TAKES = 'send image bytes, multipart/form-data, or {"images": [base64, ...]}'


@dataclass(frozen=True, slots=True)
class Inputs:
    """The images of a request in order, and the options that came in its body."""

    images: list[Given]
    fields: Mapping[str, Any]


async def receive(request: Request, task: Task, schema: type[Native]) -> tuple[list[Given], Native]:
    """Read a request of the native API: its images and its options. It then uses the model and heads that they name.

    Raises what `Engine.check`, `read_body`, `parse` and `validate` raise.
    """
    engine: Engine = request.app.state.engine
    choose_heads(request, request.query_params.getlist("head")[:MOST_HEADS])
    early = task._replace(heads=heads_of(request).enabled)  # the body may name heads
    if name := request.query_params.get("model"):
        choose(request, early, name)
    else:
        choose_early(request, early)
    body = await read_body(request)
    record: RequestRecord = request.scope[KEY]
    content_type = record.headers.get("content-type", "")
    if needs_parsing(body, content_type):
        found = await in_thread(request, parse, body, content_type, engine.settings.max_images)
    else:
        found = Inputs([body], {})
    options = validate(schema, request.query_params, found.fields)
    if isinstance(options, ClassesOptions):
        choose_heads(request, options.head)
    if options.model is not None or record.model is None or early.heads:
        choose(request, task, options.model)
    return found.images, options


async def read_body(request: Request) -> bytes:
    """Read and decompress the whole body. VIM_MAX_BODY_BYTES limits it before and after decompression.

    Raises BodyTooLarge, BodyTimeout, EmptyBody, UnsupportedEncoding, MalformedBody; QueueFull and MemoryFull if there
    is no room for it; InvalidOptions (request class); ClientDisconnect if the client disconnects before the end.
    """
    engine: Engine = request.app.state.engine
    record: RequestRecord = request.scope[KEY]
    record.request_class = request_class(record.headers)
    number = record.model.id.number if record.model else 0
    account = record.body = BodyAccount(engine.admission, record.request_class, number)  # the middleware closes it
    limit = engine.settings.max_body_bytes
    body = await read_limited(request, limit, account, engine.settings.body_timeout_ms / 1000)
    record.bytes = len(body)
    encoding = record.headers.get("content-encoding", "").strip().lower()
    if encoding in content_encoding.IDENTITY:
        return body
    content = await in_thread(request, content_encoding.inflate, body, encoding, limit)
    account.receive(max(0, len(content) - account.size))
    if not content:
        raise _empty()
    return content


def request_class(headers: Mapping[str, str]) -> RequestClass:
    """The request class in `X-Request-Class`; interactive without that header. Raises InvalidOptions."""
    given = headers.get("x-request-class", "interactive").strip().lower()
    if given not in get_args(RequestClass):
        raise InvalidOptions(f"X-Request-Class must be one of {', '.join(get_args(RequestClass))}; got {given[:100]!r}")
    return cast(RequestClass, given)


async def read_limited(request: Request, max_bytes: int, account: BodyAccount, timeout_s: float) -> bytes:
    """Read the whole body. Bytes are counted as they arrive, so a missing or false Content-Length has no effect.

    Raises BodyTooLarge, EmptyBody, BodyTimeout, and what `account` raises before and while the bytes arrive.
    """
    record: RequestRecord = request.scope[KEY]
    declared = record.headers.get("content-length", "")
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
        raise _empty()
    return body


async def _streamed(request: Request, max_bytes: int, account: BodyAccount) -> bytes:
    parts = []
    async for part in request.stream():
        if part:
            account.receive(len(part))
            if account.size > max_bytes:
                raise _too_large(f"more than {max_bytes} bytes", max_bytes)
            parts.append(part)
    # Join large bodies in a thread: CPython releases its lock while it copies megabytes.
    return b"".join(parts) if account.size < LARGE else await blocking.run(b"".join, parts)


def parse(body: bytes, content_type: str, max_images: int) -> Inputs:
    """Find the images in a body. A bad image becomes an error in its place; a bad body raises ServiceError."""
    if content_type.strip().lower().startswith("multipart/form-data"):
        found = _from_multipart(body, content_type, max_images)
    elif sniff(body) is not None:
        found = Inputs([body], {})
    else:
        found = _from_json(body, max_images)
    check_count(len(found.images), max_images)
    return found


def check_count(images: int, max_images: int) -> None:
    """Raise EmptyBody or TooManyImages if the number of images is not allowed."""
    if not images:
        raise EmptyBody("the request holds no image")
    if images > max_images:
        raise TooManyImages(f"{images} images in one request; the limit is {max_images} (VIM_MAX_IMAGES)")


def needs_parsing(body: bytes, content_type: str) -> bool:
    """Return False if the body is one image. Other bodies are parsed in a thread."""
    return content_type.strip().lower().startswith("multipart/") or sniff(body) is None


def validate(schema: type[Options], query: Mapping[str, str], fields: Mapping[str, Any]) -> Options:
    """Validate the options of query and body. Raises InvalidOptions, which names each wrong or unknown option."""
    given = dict(query)
    if isinstance(query, QueryParams) and len(query.multi_items()) > len(query):
        given = _grouped(query.multi_items(), "in the query")
    if fields and (duplicates := sorted(given.keys() & fields.keys())):
        raise InvalidOptions(f"given in the query and in the body: {_names(duplicates)}")
    try:
        return schema.model_validate({**given, **fields})
    except ValidationError as error:
        raise _invalid(error, schema.model_fields) from error


def _grouped(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, Any]:
    """The options by name; the values of those in `REPEATED` as a list.

    Raises InvalidOptions if another name occurs twice, because it is unclear which value the client means.
    """
    counts = Counter(name for name, _ in pairs)
    if repeated := [name for name, count in counts.items() if count > 1 and name not in REPEATED]:
        raise InvalidOptions(f"given more than once {where}: {_names(repeated)}")
    several = {name: [value for key, value in pairs if key == name] for name in counts.keys() & REPEATED}
    return dict(pairs) | several


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(name[:_LONGEST_NAME] for name in names[:_MOST_ERRORS])
    return shown if len(names) <= _MOST_ERRORS else f"{shown} and {len(names) - _MOST_ERRORS} more"


def _invalid(error: ValidationError, known: Collection[str]) -> InvalidOptions:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    more = [f"and {len(found) - _MOST_ERRORS} more"] if len(found) > _MOST_ERRORS else []
    shown = [
        {"loc": _name(e["loc"]), "msg": _message(e["type"], e["msg"], _name(e["loc"]), known)}
        for e in found[:_MOST_ERRORS]
    ]
    return InvalidOptions("; ".join([*(f"{e['loc']}: {e['msg']}" for e in shown), *more]), errors=shown)


def _name(loc: Sequence[int | str]) -> str:
    return ".".join(map(str, loc))[:_LONGEST_NAME]


def _message(kind: str, text: str, name: str, known: Collection[str]) -> str:
    if kind != "extra_forbidden":
        return text.removeprefix("Value error, ")
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown option, did you mean {near[0]}?" if near else "unknown option"


def _empty() -> EmptyBody:
    return EmptyBody("the body is empty; send the bytes of an image, a multipart form or JSON")


def _too_large(found: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {found}; the limit is {limit} (VIM_MAX_BODY_BYTES)")


def _from_multipart(body: bytes, content_type: str, max_images: int) -> Inputs:
    images: list[Given] = []
    fields: list[tuple[str, str]] = []
    for part in multipart.parts(body, content_type, max_images):
        if part.is_file or part.name in IMAGE_FIELDS:
            images.append(part.data)
        elif len(part.data) > MOST_FIELD_BYTES:
            raise MalformedBody(f"the option {part.name[:_LONGEST_NAME]!r} has more than {MOST_FIELD_BYTES} bytes")
        else:
            fields.append((part.name, part.data.decode("utf-8", "replace")))
    return Inputs(images, _grouped(fields, "in the form"))


def _from_json(body: bytes, max_images: int) -> Inputs:
    content = load_object(body, max_images, _TAKES)
    if "images" not in content:
        raise MalformedBody('the JSON body must be an object with "images", a list of base64 strings')
    images = content.pop("images")
    if not isinstance(images, list):
        raise MalformedBody('"images" must be a list of base64 strings or data URIs')
    check_count(len(images), max_images)
    return Inputs([from_text(item) for item in images], content)
