"""Parses JSON bodies within limits, which are checked before parsing or directly after it.

20 MB of JSON take 20 MB of memory as one string, but gigabytes and minutes as ten million small values. The contracts
interpret the parsed value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from service.errors import MalformedBody, UnsupportedImage

MOST_LISTS = 2_000_000  # nested lists of pixels have one list for each pixel
MOST_OBJECTS = 1000  # objects that describe tensors
MOST_NUMBERS = 4_000_000  # pixel values; larger images are sent as files or as binary tensors
MOST_VALUES = 1000  # in a body whose images are strings, without the images
VALUES_OF_AN_IMAGE = 10  # in OpenAI's formats an image is an object with several values
DEEPEST = 50  # JSON libraries fail at a few hundred levels, each at another one


def load_tensors(body: bytes) -> Any:
    """Parse a body whose pixels are numbers. Raises MalformedBody."""
    if body.count(b",") > MOST_NUMBERS:
        raise MalformedBody(f"the JSON body holds more than {MOST_NUMBERS} values; send a binary tensor")
    if body.count(b"[") > MOST_LISTS or body.count(b"{") > MOST_OBJECTS:
        raise MalformedBody(f"the JSON body holds more than {MOST_LISTS} lists or {MOST_OBJECTS} objects")
    return _load(body)


def load_texts(body: bytes, max_images: int) -> Any:
    """Parse a body whose images are strings, so that it holds few values. Raises MalformedBody."""
    if body.count(b",") > MOST_VALUES + VALUES_OF_AN_IMAGE * max_images:  # base64 has no comma, a data URI has one
        raise MalformedBody(
            f"the JSON body holds far more values than {max_images} images (VIM_MAX_IMAGES) and options"
        )
    content = _load(body)
    _check_depth(content)
    return content


def load_object(body: bytes, max_images: int) -> dict[str, Any]:
    """Parse a body that must be an object; its Content-Type is ignored. Raises UnsupportedImage, MalformedBody."""
    if body.lstrip()[:1] not in (b"{", b"["):
        raise UnsupportedImage(
            "the body is not an image of a known format, not a multipart form and not JSON; "
            'send image bytes, multipart/form-data, or {"images": [base64, ...]}'
        )
    content = load_texts(body, max_images)
    if not isinstance(content, dict):
        raise MalformedBody("the JSON body must be an object")
    return content


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
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
