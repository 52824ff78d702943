"""Reads one image from a JSON value, for all contracts: its encoded bytes, or an error.

It does not decode images; `service.images.decode` does.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InvalidOptions, MalformedBody, ServiceError, UnsupportedInput, UrlNotSupported
from service.images.formats import sniff
from service.jobs import Item

_DATA_URI = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_URL = re.compile(r"(https?|ftp|file|s3|gs)://", re.IGNORECASE)
_IMAGE_KEYS = ("image", "bytes", "url", "image_url", "image_base64")
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def from_text(item: object) -> Item:
    """One image of a JSON body: base64 (with or without line breaks and padding) or a base64 data URI."""
    if not isinstance(item, str):
        return MalformedBody("an image must be a base64 string or a data URI")
    if _URL.match(item):
        return UrlNotSupported("URLs are not fetched; send the image's bytes, base64 or a data URI")
    prefix = _DATA_URI.match(item)  # at the start only: a search takes quadratic time on a hostile text
    text = item[prefix.end() :] if prefix else item
    with contextlib.suppress(ValueError):
        return binascii.a2b_base64(text, strict_mode=True)  # the usual form; ten times faster than the code below
    text = _SPACE.sub("", text).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or characters beyond ASCII
        return MalformedBody(f"not base64: {error}")


def from_any(item: object) -> Item:
    """One image in the format of any embedding client: a string, an object, or a chat message.

    A string that is neither a data URI nor base64 of an image is text, which the model does not support.
    """
    if isinstance(item, Mapping) and "content" in item:
        return from_message(item)
    if isinstance(item, int) or (isinstance(item, list) and all(isinstance(one, int) for one in item)):
        return InvalidOptions(
            "token ids instead of an image; tell your client not to tokenise (LangChain: "
            "check_embedding_ctx_length=False)"
        )
    return _from_part(item)


def from_message(message: Mapping[str, Any]) -> Item:
    """The only image of a chat message (as vLLM expects it): {"role", "content": [{"type": "image_url", ...}]}."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    images = [_from_part(part) for part in parts if not _is_blank(part)]
    if refused := next((one for one in images if isinstance(one, ServiceError)), None):
        return refused
    return (
        images[0] if len(images) == 1 else MalformedBody(f"{len(images)} images in a message; one embedding needs one")
    )


def whole(items: Sequence[Item]) -> Sequence[Item]:
    """Return the items if all are images, for contracts without errors per image; else raise the first error."""
    for index, item in enumerate(items):
        if isinstance(item, ServiceError):
            raise item.about(f"image {index}") if len(items) > 1 else item
    return items


def _from_part(part: object) -> Item:
    if isinstance(part, str):
        return _image_or_text(part)
    if isinstance(part, Mapping):
        return _from_object(part)
    return MalformedBody("an image must be a base64 string, a data URI, or an object with one of them")


def _image_or_text(text: str) -> Item:
    if _DATA_URI.match(text) or _URL.match(text):
        return from_text(text)
    found = from_text(text)
    return found if isinstance(found, bytes) and sniff(found) else _no_text()


def _from_object(item: Mapping[str, Any]) -> Item:
    value = next((item[key] for key in _IMAGE_KEYS if item.get(key) is not None), None)
    if value is None:
        return _no_text() if "text" in item else MalformedBody(f"an image object needs one of {', '.join(_IMAGE_KEYS)}")
    return from_text(value.get("url") if isinstance(value, Mapping) else value)


def _is_blank(part: Any) -> bool:
    return isinstance(part, Mapping) and "text" in part and not str(part["text"]).strip()


def _no_text() -> UnsupportedInput:
    return UnsupportedInput("text is not supported: this is a vision-only model; send an image as a data URI or base64")
