"""Reads one image from a JSON value, for all contracts: its encoded bytes, a link, or an error.

It does not decode images; `service.images.decode` does. It does not fetch links; `service.api.request.links` does.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InvalidOptions, MalformedBody, ServiceError, UnsupportedInput, UrlNotSupported, bare
from service.images.formats import sniff
from service.jobs import Given, Item, Link

PIECE = 1 << 18  # characters; a piece takes one millisecond, and other threads can run between two pieces
LONGEST_START = 4096  # characters before the comma of a data URI
LONGEST_URL = 2048

# A quoted parameter may contain commas. Possessive, because a hostile text must not take quadratic time.
_DATA_URI = re.compile(r'\s*data:((?:[^,"]|"[^"]*")*+),', re.IGNORECASE)
_DATA = re.compile(r"\s*data:", re.IGNORECASE)
_URL = re.compile(r"(https?|ftp|file|s3|gs)://", re.IGNORECASE)
_IMAGE_KEYS = ("image", "bytes", "url", "image_url", "image_base64")
_SPACE = b" \t\n\r\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def from_text(item: object) -> Given:
    """One image of a JSON body: base64 (with or without blanks and padding), a base64 data URI, or a URL."""
    if not isinstance(item, str):
        return MalformedBody("an image must be a base64 string or a data URI")
    if url := _URL.match(item):
        return _from_url(item, url[1].lower())
    try:
        text = item[_start_of_data(item) :]
        strict = _strict(text)
        return _loose(text) if strict is None else strict
    except MalformedBody as error:
        return bare(error)
    except UnicodeEncodeError:
        return MalformedBody("not base64: it has characters beyond ASCII")
    except ValueError as error:  # of binascii
        return MalformedBody(f"not base64: {error}")


def without_link(given: Given) -> Item:
    """The image or its error, where URLs are not fetched; a link becomes an error."""
    return _not_fetched("URLs are not fetched here") if isinstance(given, Link) else given


def _from_url(text: str, scheme: str) -> Given:
    if scheme not in ("http", "https"):
        return _not_fetched(f"{scheme} URLs are not fetched")
    if len(text) > LONGEST_URL:
        return MalformedBody(f"the URL has {len(text)} characters; the limit is {LONGEST_URL}")
    return Link(text)


def _not_fetched(reason: str) -> UrlNotSupported:
    return UrlNotSupported(f"{reason}; send the image's bytes, base64 or a data URI")


def _start_of_data(text: str) -> int:
    """Return where the base64 begins: after the comma of a data URI, else 0. Raises MalformedBody."""
    start = text[:LONGEST_START]  # a search in the whole text would hold Python's lock
    if not _DATA.match(start):
        return 0
    found = _DATA_URI.match(start)
    if found is None:
        raise MalformedBody(f"a data URI needs a comma within its first {LONGEST_START} characters, before its base64")
    if found[1].rpartition(";")[2].strip().lower() != "base64":
        raise MalformedBody(
            f"the data URI has no ;base64 before its comma: data:{found[1][:100]},...; "
            "percent-encoded data URIs are not supported"
        )
    return found.end()


def _strict(text: str) -> bytes | None:
    """Decode the usual form of base64, piece by piece; None for any other form."""
    pieces = []
    for start in range(0, len(text), PIECE):
        try:
            piece = binascii.a2b_base64(text[start : start + PIECE], strict_mode=True)
        except ValueError:
            return None
        if len(piece) < PIECE // 4 * 3 and start + PIECE < len(text):  # padding before the end
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _loose(text: str) -> bytes:
    """Decode base64 with blanks, the URL-safe alphabet or without padding, piece by piece. Raises ValueError."""
    pieces, rest = [], b""
    for start in range(0, len(text), PIECE):
        rest += text[start : start + PIECE].encode("ascii").translate(_URL_SAFE, _SPACE)
        whole = max(0, len(rest) - 4) // 4 * 4  # the padding stays in the rest
        pieces.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
        if len(pieces[-1]) < whole // 4 * 3:
            raise ValueError("Excess data after padding")
        rest = rest[whole:]
    rest = rest.rstrip(b"=")
    if len(rest) % 4 == 1:
        raise ValueError("the last character is incomplete")
    pieces.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    return b"".join(pieces)


def from_any(item: object) -> Given:
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


def from_message(message: Mapping[str, Any]) -> Given:
    """The only image of a chat message (as vLLM expects it): {"role", "content": [{"type": "image_url", ...}]}."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    images = [_from_part(part) for part in parts if not _is_blank(part)]
    if refused := next((one for one in images if isinstance(one, ServiceError)), None):
        return refused
    return (
        images[0] if len(images) == 1 else MalformedBody(f"{len(images)} images in a message; one embedding needs one")
    )


def whole(items: Sequence[Given]) -> Sequence[Given]:
    """Return the items if none is an error, for contracts without errors per image; else raise the first error."""
    for index, item in enumerate(items):
        if isinstance(item, ServiceError):
            raise item.about(f"image {index}") if len(items) > 1 else item
    return items


def _from_part(part: object) -> Given:
    if isinstance(part, str):
        return _image_or_text(part)
    if isinstance(part, Mapping):
        return _from_object(part)
    return MalformedBody("an image must be a base64 string, a data URI, or an object with one of them")


def _image_or_text(text: str) -> Given:
    if _DATA_URI.match(text[:LONGEST_START]) or _URL.match(text):
        return from_text(text)
    found = from_text(text)
    return found if isinstance(found, bytes) and sniff(found) else _no_text()


def _from_object(item: Mapping[str, Any]) -> Given:
    value = next((item[key] for key in _IMAGE_KEYS if item.get(key) is not None), None)
    if value is None:
        return _no_text() if "text" in item else MalformedBody(f"an image object needs one of {', '.join(_IMAGE_KEYS)}")
    return from_text(value.get("url") if isinstance(value, Mapping) else value)


def _is_blank(part: Any) -> bool:
    return isinstance(part, Mapping) and "text" in part and not str(part["text"]).strip()


def _no_text() -> UnsupportedInput:
    return UnsupportedInput("text is not supported: this is a vision-only model; send an image as a data URI or base64")
