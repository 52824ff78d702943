"""A compressed body is unpacked up to the limit and not a byte further."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from service.api.request.content_encoding import inflate
from service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

TEXT = bytes(range(256)) * 40


@pytest.mark.parametrize(("encoding", "body"), [("gzip", gzip.compress(TEXT)), ("deflate", zlib.compress(TEXT))])
def test_both_codings_are_unpacked(encoding: str, body: bytes) -> None:
    """Exactly at the limit is still allowed."""
    assert TEXT == inflate(body, encoding, len(TEXT))


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    """200 MB from 200 kB: nothing near that is ever allocated."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge, match="VIM_MAX_BODY_BYTES"):
        inflate(bomb, "gzip", 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 5_000_000


@pytest.mark.parametrize("body", [b"plain", gzip.compress(TEXT)[:-9], gzip.compress(TEXT) + b"more"])
def test_a_damaged_body_is_malformed(body: bytes) -> None:
    """Not gzip at all, cut short, or with something behind it."""
    with pytest.raises(MalformedBody):
        inflate(body, "gzip", 10**6)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate"])
def test_other_codings_are_415(encoding: str) -> None:
    """And named."""
    with pytest.raises(UnsupportedEncoding, match=encoding):
        inflate(TEXT, encoding, 10**6)
