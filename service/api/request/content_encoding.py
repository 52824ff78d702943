"""A compressed request body -> its content, within a limit: a kilobyte may stand for a gigabyte. Nothing of HTTP."""

from __future__ import annotations

import zlib

from service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

IDENTITY = ("", "identity")
# zlib's window bits: gzip's own header, or zlib's, which HTTP calls deflate.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo `Content-Encoding`. Raises UnsupportedEncoding, MalformedBody, BodyTooLarge before making more."""
    if encoding not in _WINDOW:
        raise UnsupportedEncoding(f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, deflate or neither")
    stream = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"the body is not {encoding}") from error
    if len(content) > max_bytes:
        raise BodyTooLarge(f"the body has more than {max_bytes} bytes unpacked, the limit (VIM_MAX_BODY_BYTES)")
    if not stream.eof or stream.unused_data:
        raise MalformedBody(f"the {encoding} body ends too early, or something follows it")
    return content
