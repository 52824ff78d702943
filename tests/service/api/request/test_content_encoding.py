"""Compressed bodies are decompressed up to the limit and not a byte further."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest

from service.api.request.content_encoding import MOST_MEMBERS, PIECE, inflate
from service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

TEXT = bytes(range(256)) * 40


@pytest.mark.parametrize(("encoding", "body"), [("gzip", gzip.compress(TEXT)), ("deflate", zlib.compress(TEXT))])
def test_both_codings_are_unpacked(encoding: str, body: bytes) -> None:
    """gzip and deflate bodies are decompressed, up to and including the limit."""
    assert TEXT == inflate(body, encoding, len(TEXT))


def test_a_gzip_body_may_have_several_members() -> None:
    """All members of a gzip body are read, also where one ends and the next begins anywhere in a piece."""
    parts = [TEXT[:100], b"", random.Random(3).randbytes(PIECE), TEXT]
    body = b"".join(map(gzip.compress, parts))

    assert b"".join(parts) == inflate(body, "gzip", 10**6)
    with pytest.raises(BodyTooLarge):
        inflate(body, "gzip", PIECE + 50)
    with pytest.raises(MalformedBody, match="too many members"):
        inflate(gzip.compress(b"") * (MOST_MEMBERS + 1), "gzip", 100)
    with pytest.raises(MalformedBody, match="follow the deflate body"):
        inflate(zlib.compress(TEXT) * 2, "deflate", len(body))


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    """200 MB compressed to 200 kB are refused without taking that memory."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge, match="VIM_MAX_BODY_BYTES"):
        inflate(bomb, "gzip", 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 5_000_000


@pytest.mark.parametrize("body", [b"plain", gzip.compress(TEXT)[:-9], gzip.compress(TEXT) + b"more"])
def test_a_damaged_body_is_malformed(body: bytes) -> None:
    """A body that is not gzip, is incomplete, or has bytes after its end is refused."""
    with pytest.raises(MalformedBody):
        inflate(body, "gzip", 10**6)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate"])
def test_other_codings_are_415(encoding: str) -> None:
    """Another Content-Encoding is refused with 415, and the error names it."""
    with pytest.raises(UnsupportedEncoding, match=encoding):
        inflate(TEXT, encoding, 10**6)
