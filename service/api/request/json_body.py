"""A JSON text -> the value that it stands for, within bounds that are checked before or at once after parsing.

A value of 20 MB costs 20 MB as one text, and gigabytes and minutes as ten million small ones. What a contract makes of
the value is its own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from service.errors import MalformedBody, UnsupportedImage

MOST_LISTS = 2_000_000  # pixels written as nested lists have one for each
MOST_OBJECTS = 1000  # that describe tensors
MOST_NUMBERS = 4_000_000  # pixels as numbers; larger images are sent as files or as binary tensors
MOST_VALUES = 1000  # of a body whose images are texts
VALUES_OF_AN_IMAGE = 10  # beside them: in OpenAI's spellings an image is an object of several
DEEPEST = 50  # JSON's libraries give up at a few hundred, each elsewhere


def load_tensors(body: bytes) -> Any:
    """Of a body with pixels as numbers. Raises MalformedBody."""
    if body.count(b",") > MOST_NUMBERS:
        raise MalformedBody(f"the JSON body holds more than {MOST_NUMBERS} values; send a binary tensor")
    if body.count(b"[") > MOST_LISTS or body.count(b"{") > MOST_OBJECTS:
        raise MalformedBody(f"the JSON body holds more than {MOST_LISTS} lists or {MOST_OBJECTS} objects")
    return _load(body)


def load_texts(body: bytes, max_images: int) -> Any:
    """Of a body whose images are texts, so that it holds few values. Raises MalformedBody."""
    if body.count(b",") > MOST_VALUES + VALUES_OF_AN_IMAGE * max_images:  # base64 has none, a data URI has one
        raise MalformedBody(
            f"the JSON body holds far more values than {max_images} images (VIM_MAX_IMAGES) and options"
        )
    content = _load(body)
    _check_depth(content)
    return content


def load_object(body: bytes, max_images: int) -> dict[str, Any]:
    """The same where it must be an object, whatever its Content-Type says. Raises UnsupportedImage, MalformedBody."""
    if body.lstrip()[:1] not in (b"{", b"["):
        raise UnsupportedImage(
            "the body is no image of a known format, no multipart form and no JSON; "
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
    raise MalformedBody(f"the JSON body is nested more than {DEEPEST} deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
