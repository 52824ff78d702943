"""One image as a client wrote it in JSON -> its bytes, or why there are none. Shared by all contracts.

Does not decode images; that is `service.images`.
"""

from __future__ import annotations

import base64
import binascii
import re

from service.errors import MalformedBody, ServiceError, UrlNotSupported
from service.images import Pixels

Image = bytes | Pixels  # encoded, or uint8 (H, W, 3)
Item = Image | ServiceError  # an image, or why there is none

_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_URL = re.compile(r"(https?|ftp|file|s3|gs)://", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def from_text(item: object) -> Item:
    """One image of a JSON body: base64 (with or without line breaks and padding) or a base64 data URI."""
    if not isinstance(item, str):
        return MalformedBody("an image must be a base64 string or a data URI")
    if _URL.match(item):
        return UrlNotSupported("URLs are not fetched; send the image's bytes, base64 or a data URI")
    text = _SPACE.sub("", _DATA_URI.sub("", item, count=1)).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        return MalformedBody(f"not base64: {error}")
