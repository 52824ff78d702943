"""A stream over gRPC while device processes are killed: no request is lost, and no answer is another's."""

from __future__ import annotations

import queue
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.e2e.server import Server, free_port, serving
from tests.tiny import photo

KILLS, IN_FLIGHT = 20, 12
PHOTOS = [photo(seed) for seed in range(24)]

Answer = tuple[Any, Any]  # the result and the error of a request


def encoded(image: bytes) -> Any:
    """The input of one image."""
    tensor = triton.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=object))
    return tensor


class Stream:
    """One stream with a number of requests in flight; keeps the answers by request id."""

    def __init__(self, address: str) -> None:
        self.client = triton.InferenceServerClient(address)
        self.answers: dict[int, np.ndarray] = {}
        self.errors: list[str] = []
        self.sent = 0
        self._finished: queue.Queue[Answer] = queue.Queue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begin to send."""
        self.client.start_stream(lambda result, error: self._finished.put((result, error)))
        self._thread.start()

    def end(self) -> None:
        """Stop to send, and wait for the answers that are missing."""
        self._over.set()
        self._thread.join()
        self.client.stop_stream()
        self.client.close()

    def _send(self) -> None:
        tensor = encoded(PHOTOS[self.sent % len(PHOTOS)])
        self.client.async_stream_infer("tiny", [tensor], request_id=str(self.sent))
        self.sent += 1

    def _run(self) -> None:
        for _ in range(IN_FLIGHT):
            self._send()
        while len(self.answers) + len(self.errors) < self.sent:
            result, error = self._finished.get(timeout=120)
            if error is None:
                self.answers[int(result.get_response().id)] = result.as_numpy("scores")[0]
            else:
                self.errors.append(str(error))
            if not self._over.is_set():
                self._send()


def kill(server: Server, restarts: int) -> None:
    """Kill the device process, and wait until another serves."""
    server.signal_device(signal.SIGKILL)
    server.wait_for(lambda: server.devices()[0]["restarts"] >= restarts and server.devices()[0]["up"])


@pytest.mark.slow
def test_a_stream_survives_the_deaths_of_devices(tmp_path: Path, tiny: Path) -> None:
    """While the device process is killed twenty times, each request of a stream gets its own answer."""
    port = free_port()
    with serving(tmp_path, model=tiny, grpc_port=port, request_timeout_ms=120_000) as server:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            wanted = [client.infer("tiny", [encoded(one)]).as_numpy("scores")[0] for one in PHOTOS]
        stream = Stream(f"127.0.0.1:{port}")
        stream.start()
        for number in range(KILLS):
            kill(server, number + 1)
        stream.end()

    assert [] == stream.errors
    assert list(range(stream.sent)) == sorted(stream.answers)
    for number, scores in stream.answers.items():
        np.testing.assert_allclose(scores, wanted[number % len(PHOTOS)], atol=1e-5)
