"""Parses JSON bodies within limits, which are checked before parsing or directly after it.

20 MB of JSON take 20 MB of memory as one string, but gigabytes and minutes as ten million small values. The parser
holds Python's lock, so other requests wait while it runs: about 50 ms for the largest body that is allowed. The
contracts interpret the parsed value.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from service.errors import BodyTooLarge, MalformedBody, UnsupportedImage
from service.images.formats import sniff

MOST_NUMBERS = 610_000  # pixel values: four images of 224 x 224; more are sent as files or as binary tensors
MOST_LISTS = 210_000  # nested lists of pixels have one list for each pixel
MOST_OBJECTS = 1000  # objects that describe tensors
MOST_MEMBERS = 10_000  # of all these objects
MOST_VALUES = 1000  # in a body whose images are strings, without the images
VALUES_OF_AN_IMAGE = 10  # in OpenAI's formats an image is an object with several values
DEEPEST = 50  # JSON libraries fail at a few hundred levels; the limit differs between libraries
FILE_PATHS = "/v1/classify and /v1/embed take image files"

_MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, which editors and PowerShell put before a text


def load_tensors(body: bytes) -> Any:
    """Parse a body whose pixels are numbers. Raises BodyTooLarge, MalformedBody."""
    limits = {b",": MOST_NUMBERS, b"[": MOST_LISTS, b"{": MOST_OBJECTS, b":": MOST_MEMBERS}
    if any(body.count(mark) > limit for mark, limit in limits.items()):
        raise BodyTooLarge(
            f"the JSON body holds more than {MOST_NUMBERS} values, {MOST_LISTS} lists or {MOST_OBJECTS} objects; "
            "send pixels as a binary tensor (binary_data_size), or encoded images"
        )
    with _without_collector():
        return _load(body)


def load_texts(body: bytes, max_images: int) -> Any:
    """Parse a body whose images are strings, so that it holds few values. Raises BodyTooLarge, MalformedBody."""
    if body.count(b",") > MOST_VALUES + VALUES_OF_AN_IMAGE * max_images:  # base64 has no comma, a data URI has one
        raise BodyTooLarge(f"the JSON body holds far more values than {max_images} images (VIM_MAX_IMAGES) and options")
    content = _load(body)
    _check_depth(content)
    return content


def load_object(body: bytes, max_images: int, takes: str) -> dict[str, Any]:
    """Parse a body that must be an object; its Content-Type is ignored. `takes` describes accepted bodies.

    Raises UnsupportedImage, BodyTooLarge, MalformedBody.
    """
    if not looks_like_json(body):
        found = sniff(body)
        kind = (
            f"a file in the format {found}"
            if found
            else "not an image of a known format, not a multipart form and not JSON"
        )
        raise UnsupportedImage(f"the body is {kind}; {takes}")
    content = load_texts(body, max_images)
    if not isinstance(content, dict):
        raise MalformedBody(f"the JSON body must be an object; {takes}")
    return content


def only_json(example: str) -> str:
    """Describe the body of a path that accepts JSON only, with an example."""
    return f"this path takes JSON only: {example}; {FILE_PATHS}"


def looks_like_json(body: bytes) -> bool:
    """Return whether the body begins as a JSON object or list does."""
    return body.removeprefix(_MARK).lstrip()[:1] in (b"{", b"[")


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Switch Python's garbage collector off. While the parser creates lists, the collector would search for cycles
    repeatedly, which takes ten times as long as parsing. If threads overlap here, the first one switches it on again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body.removeprefix(_MARK))
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"broken JSON: {error}") from error


def _check_depth(content: Any) -> None:
    level: Sequence[Any] = [content]
    for _ in range(DEEPEST):
        level = [child for one in level for child in _children(one)]
        if not level:
            return
    raise MalformedBody(f"the JSON body is nested more than {DEEPEST} levels deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
