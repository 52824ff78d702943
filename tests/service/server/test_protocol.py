"""An answer with a known length is one write, any other is written piece by piece, and nothing is kept back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from service.server.protocol import WholeAnswers

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
IN_PIECES = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps the data of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep one write."""
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Keep several pieces as one write."""
        self.writes.append(b"".join(list_of_data))

    def close(self) -> None:
        """Note the close as a write."""
        self.writes.append(b"closed")

    def is_closing(self) -> bool:
        """Return that the transport is open."""
        return False


def test_head_and_body_are_one_write() -> None:
    """A head with a Content-Length and the body are one write; later data is written separately."""
    answers = WholeAnswers(wire := Wire())
    answers.write(HEAD)
    assert [] == wire.writes
    answers.write(b"body")
    answers.flush()
    answers.write(b"more")

    assert [HEAD + b"body", b"more"] == wire.writes
    assert not answers.is_closing()


def test_an_answer_in_pieces_does_not_wait() -> None:
    """A head without a Content-Length is written at once."""
    answers = WholeAnswers(wire := Wire())
    answers.write(IN_PIECES)

    assert [IN_PIECES] == wire.writes


def test_a_head_without_a_body_is_written_all_the_same() -> None:
    """A head without a body is written when the answer is complete or the transport is closed."""
    answers = WholeAnswers(wire := Wire())
    answers.write(HEAD)
    answers.flush()
    answers.write(HEAD)
    answers.close()

    assert [HEAD, HEAD, b"closed"] == wire.writes
