"""gRPC clients that break the rules, send half a message or read no answers do not affect other clients."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from service.grpc.servicer import IN_FLIGHT
from tests.e2e import http2
from tests.e2e.http2 import Client, infer_message
from tests.e2e.server import Server, free_port, serving
from tests.tiny import photo, write_tiny_model

HEADER_TIMEOUT_S, BODY_TIMEOUT_S = 1.5, 1.0
PATIENCE_S = 20  # generous for a busy machine; a server without timers would never end a call
IDLE = 200


class Attacked(NamedTuple):
    """A server with short time-outs, and the address of its gRPC port."""

    server: Server
    address: str

    def infer(self) -> None:
        """An ordinary call."""
        tensor = triton.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[photo()]], dtype=object))
        with triton.InferenceServerClient(self.address) as client:
            assert 1 == len(client.infer("tiny", [tensor], client_timeout=60).as_numpy("labels"))

    def descriptors(self) -> int:
        """Open file descriptors of the HTTP process."""
        return int(psutil.Process(self.server.process.pid).num_fds())

    def wait_for_descriptors(self, most: int) -> None:
        """Wait until at most so many descriptors are open."""
        self.server.wait_for(lambda: self.descriptors() <= most)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """A running server."""
    folder, port = tmp_path_factory.mktemp("hostile"), free_port()
    timeouts: dict[str, Any] = {
        "header_timeout_ms": int(1000 * HEADER_TIMEOUT_S),
        "body_timeout_ms": int(1000 * BODY_TIMEOUT_S),
    }
    with serving(folder, model=write_tiny_model(folder / "tiny"), grpc_port=port, **timeouts) as server:
        found = Attacked(server, f"127.0.0.1:{port}")
        found.infer()
        yield found


def test_corrupted_frames_end_only_their_connection(attacked: Attacked) -> None:
    """Random frames are answered with GOAWAY or ignored; the next call is answered."""
    before = attacked.descriptors()
    for seed in range(50):
        with Client(attacked.address) as client:
            client.send(http2.corrupted(seed))
    with Client(attacked.address, preface=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        assert client.closed()

    attacked.infer()
    attacked.wait_for_descriptors(before + 5)


def test_a_connection_must_begin_in_time(attacked: Attacked) -> None:
    """A connection that sends nothing is closed after VIM_HEADER_TIMEOUT_MS."""
    begun = time.monotonic()
    with Client(attacked.address, preface=b"") as client:
        client.socket.settimeout(PATIENCE_S)
        assert client.closed()

    assert time.monotonic() - begun < PATIENCE_S


def test_half_a_message_is_ended_in_time(attacked: Attacked) -> None:
    """A call whose message does not arrive within VIM_BODY_TIMEOUT_MS is ended; others are answered meanwhile."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(attacked.address)) for _ in range(20)]
        for client in clients:
            for _ in range(5):
                client.data(client.call(), http2.half_message(1 << 20)[:12_000])
        attacked.infer()
        for client in clients:
            client.socket.settimeout(PATIENCE_S)
            ended = (kind for kind, _ in client.frames() if kind in (http2.HEADERS, http2.RST_STREAM))
            assert next(ended, None) is not None


def test_idle_channels_take_nothing_from_others(attacked: Attacked) -> None:
    """Beside many idle connections calls and HTTP requests are answered."""
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(Client(attacked.address))
        attacked.infer()
        assert 200 == attacked.server.status_of("/readyz")


def test_a_ping_flood_ends_its_connection(attacked: Attacked) -> None:
    """A client that sends a thousand pings is disconnected."""
    with Client(attacked.address) as client:
        client.send(http2.frame(http2.PING, bytes(8)) * 1000)
        assert client.closed()
    attacked.infer()


def test_calls_that_are_reset_at_once_cost_no_place(attacked: Attacked) -> None:
    """After thousands of calls that their client has reset, no image is in the queue."""
    with Client(attacked.address) as client:
        for _ in range(2000):
            stream = client.call()
            if not client.send(http2.frame(http2.RST_STREAM, struct.pack(">I", 8), 0, stream)):
                break
        attacked.infer()

    assert 0 == attacked.server.metric('vim_queue_depth{class="interactive"}')


def test_a_stream_that_is_not_read_is_bounded(attacked: Attacked) -> None:
    """Of a stream whose client reads nothing, only the first requests are computed."""
    image = photo(3)
    request = infer_message(image)
    with Client(attacked.address, window=0) as client:
        stream = client.call(http2.STREAM)
        for _ in range(http2.WINDOW // len(request)):
            client.data(stream, request)
        attacked.server.wait_for(lambda: _computed(attacked.server) >= IN_FLIGHT)
        attacked.infer()
        assert IN_FLIGHT + 1 >= _computed(attacked.server)


def _computed(server: Server) -> int:
    return sum('"api": "grpc"' in line and f'"bytes": {len(photo(3)) + 4}' in line for line in server.log.splitlines())


def test_the_ports_share_the_connections(tmp_path: Path, tiny: Path) -> None:
    """Each port has half of the connections that the descriptors allow, so neither can take those of the other."""
    port = free_port()
    with serving(tmp_path, model=tiny, grpc_port=port, limits="ulimit -n 400") as server, ExitStack() as stack:
        attacked = Attacked(server, f"127.0.0.1:{port}")
        clients = [stack.enter_context(Client(attacked.address)) for _ in range(300)]
        refused = sum(client.closed() for client in clients[-20:])

        assert 20 == refused
        assert 200 == server.status_of("/readyz")
        stack.close()
        attacked.infer()
