"""An answer whose length is known leaves in one piece, every other as it comes, and nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from service.server.protocol import WholeAnswers

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
IN_PIECES = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """Keeps what each write brings."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """One piece."""
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """One piece, of several."""
        self.writes.append(b"".join(list_of_data))

    def close(self) -> None:
        """Seen among the writes."""
        self.writes.append(b"closed")

    def is_closing(self) -> bool:
        """Asked through the other transport."""
        return False


def test_head_and_body_are_one_write() -> None:
    """What follows is written by itself."""
    answers = WholeAnswers(wire := Wire())
    answers.write(HEAD)
    assert [] == wire.writes
    answers.write(b"body")
    answers.flush()
    answers.write(b"more")

    assert [HEAD + b"body", b"more"] == wire.writes
    assert not answers.is_closing()


def test_an_answer_in_pieces_does_not_wait() -> None:
    """Its first piece may come much later."""
    answers = WholeAnswers(wire := Wire())
    answers.write(IN_PIECES)

    assert [IN_PIECES] == wire.writes


def test_a_head_without_a_body_is_written_all_the_same() -> None:
    """When the answer is complete, as to HEAD, and before the connection closes."""
    answers = WholeAnswers(wire := Wire())
    answers.write(HEAD)
    answers.flush()
    answers.write(HEAD)
    answers.close()

    assert [HEAD, HEAD, b"closed"] == wire.writes
