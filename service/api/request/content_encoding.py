"""Decompresses a request body up to a size limit: a compressed kilobyte can hold a gigabyte."""

from __future__ import annotations

import zlib
from typing import Any

from service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

IDENTITY = ("", "identity")
PIECE = 1 << 16  # bytes; zlib copies the data after the end of a member, so a piece must be small
MOST_MEMBERS = 2000  # of gzip; parallel compressors write one for every 64 kB or more
# zlib's window bits: 31 for a gzip header, 15 for a zlib header, which HTTP calls deflate.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress the body. Raises UnsupportedEncoding, MalformedBody, or BodyTooLarge once the limit is exceeded."""
    if encoding not in _WINDOW:
        raise UnsupportedEncoding(f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, deflate or neither")
    window = _WINDOW[encoding]
    most_members = MOST_MEMBERS if encoding != "deflate" else 1  # RFC 1952: a gzip file is a series of members
    stream, members, size, found = zlib.decompressobj(window), 1, 0, []
    for start in range(0, len(body), PIECE):
        piece = body[start : start + PIECE]
        while piece:
            if stream.eof:
                if members == most_members:
                    raise MalformedBody(f"other bytes follow the {encoding} body, or it has too many members")
                stream, members = zlib.decompressobj(window), members + 1
            found.append(_next(stream, piece, max_bytes + 1 - size, encoding))
            size += len(found[-1])
            if size > max_bytes:
                raise BodyTooLarge(f"the decompressed body has more than {max_bytes} bytes (VIM_MAX_BODY_BYTES)")
            piece = stream.unused_data
    if not stream.eof:
        raise MalformedBody(f"the {encoding} body is incomplete")
    return b"".join(found)


def _next(stream: Any, piece: bytes, most: int, encoding: str) -> bytes:
    try:
        content: bytes = stream.decompress(piece, most)
    except zlib.error as error:
        raise MalformedBody(f"the body is not valid {encoding} data") from error
    return content
