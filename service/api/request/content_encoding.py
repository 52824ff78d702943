"""Decompresses a request body up to a size limit: a compressed kilobyte can hold a gigabyte."""

from __future__ import annotations

import zlib

from service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

IDENTITY = ("", "identity")
# zlib's window bits: 31 for a gzip header, 15 for a zlib header, which HTTP calls deflate.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress the body. Raises UnsupportedEncoding, MalformedBody, or BodyTooLarge once the limit is exceeded."""
    if encoding not in _WINDOW:
        raise UnsupportedEncoding(f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, deflate or neither")
    stream = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"the body is not valid {encoding} data") from error
    if len(content) > max_bytes:
        raise BodyTooLarge(f"the decompressed body has more than {max_bytes} bytes (VIM_MAX_BODY_BYTES)")
    if not stream.eof or stream.unused_data:
        raise MalformedBody(f"the {encoding} body is incomplete, or other bytes follow it")
    return content
