"""HTTP/2 by hand, for clients that break its rules: frames, and headers without compression."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS, END_STREAM = 4, 1
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WINDOW = 65_535  # bytes that a client may send before the server allows more


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """A header field without compression (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def headers(path: str) -> bytes:
    """The header fields of a gRPC call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    return b"".join(header(name, value) for name, value in fields.items())


def message(content: bytes) -> bytes:
    """A gRPC message: no compression, its length, its content."""
    return struct.pack(">BI", 0, len(content)) + content


def infer_message(image: bytes) -> bytes:
    """A gRPC message that requests all outputs of the model `tiny` for an encoded image."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    return message(request.SerializeToString())


def half_message(size: int) -> bytes:
    """The start of a message that has `size` bytes, as far as the first window allows."""
    return struct.pack(">BI", 0, size) + bytes(16_000)


class Client:
    """One connection, which has begun HTTP/2 unless `preface` is empty."""

    def __init__(self, address: str, preface: bytes = PREFACE, window: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self._stream = -1
        settings = b"" if window is None else struct.pack(">HI", 4, window)
        self.send(preface + (frame(SETTINGS, settings) if preface else b""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send bytes; False if the server has closed the connection."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def call(self, path: str = INFER) -> int:
        """Begin a call; returns its stream."""
        self._stream += 2
        self.send(frame(HEADERS, headers(path), END_HEADERS, self._stream))
        return self._stream

    def data(self, stream: int, content: bytes, flags: int = 0) -> bool:
        """Send bytes of a message."""
        return self.send(frame(DATA, content, flags, stream))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """The frames that the server sends, until it closes the connection or is silent for a while."""
        with self.socket.makefile("rb") as file:
            while True:
                try:
                    start = file.read(9)
                except OSError:
                    return
                if len(start) < 9:
                    return
                size = int.from_bytes(start[:3], "big")
                yield start[3], file.read(size)

    def closed(self) -> bool:
        """Return whether the server ends the connection, reading what it still sends."""
        return any(kind == GOAWAY for kind, _ in self.frames()) or self._at_end()

    def _at_end(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


def corrupted(seed: int) -> bytes:
    """Frames of random kinds, lengths, flags and streams."""
    rng = random.Random(seed)
    return b"".join(
        frame(rng.randrange(16), rng.randbytes(rng.randrange(300)), rng.randrange(256), rng.randrange(9))
        for _ in range(20)
    )
