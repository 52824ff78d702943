"""When clients disconnect or deadlines pass, their images are not computed."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import httpx

from tests.e2e.faults import SLOW, plain
from tests.e2e.server import Server, serving
from tests.e2e.traffic import another_photo
from tests.tiny import photo

VANISHING = 30


def occupy(server: Server) -> threading.Thread:
    """Keep the device busy for a while."""
    body = plain(SLOW)
    thread = threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/classify", content=body, timeout=120))
    thread.start()
    server.wait_for(lambda: server.metric("vim_inflight_batches"))
    return thread


def send_and_vanish(server: Server, body: bytes, stays_s: float = 0.05) -> None:
    """Send a whole request and close the connection before the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)
        time.sleep(stays_s)


def test_images_of_clients_that_left_never_reach_the_device(tmp_path: Path, tiny: Path) -> None:
    """Images of clients that left never reach the device; they are counted, and their slots are free at once."""
    with serving(tmp_path, faults={}, model=tiny) as server:
        ran_before = server.metric('vim_batch_size_sum{model="tiny"}')
        busy = occupy(server)
        leavers = [threading.Thread(target=send_and_vanish, args=(server, another_photo())) for _ in range(VANISHING)]
        for thread in leavers:
            thread.start()
        for thread in leavers:
            thread.join()
        busy.join()
        assert 200 == httpx.post(f"{server.url}/v1/classify", content=photo(), timeout=120).status_code

        assert VANISHING == server.metric('vim_rejected_total{reason="client_gone"}')
        assert 2 == server.metric('vim_batch_size_sum{model="tiny"}') - ran_before
        assert 0 == server.metric('vim_queue_depth{class="interactive"}')
        assert VANISHING == server.log.count('"outcome": "client_gone"')


def test_nobody_is_harmed_when_the_first_sender_of_an_image_leaves(tmp_path: Path, tiny: Path) -> None:
    """When the first sender of an image leaves, another client with the same image gets its answer, from one run."""
    with serving(tmp_path, faults={}, model=tiny) as server:
        ran_before = server.metric('vim_batch_size_sum{model="tiny"}')
        busy = occupy(server)
        leaver = threading.Thread(target=send_and_vanish, args=(server, photo(), 0.5))
        leaver.start()
        answer = httpx.post(f"{server.url}/v1/classify", content=photo(), timeout=120)
        leaver.join()
        busy.join()

        assert 200 == answer.status_code
        assert 1 == server.metric('vim_rejected_total{reason="client_gone"}')
        assert 2 == server.metric('vim_batch_size_sum{model="tiny"}') - ran_before


def test_a_client_may_set_a_shorter_deadline(tmp_path: Path, tiny: Path) -> None:
    """After a client's shorter deadline it gets 504 and the image does not run; a longer one is cut to the server's."""
    with serving(tmp_path, faults={}, model=tiny, request_timeout_ms=10_000) as server:
        ran_before = server.metric('vim_batch_size_sum{model="tiny"}')
        busy = occupy(server)
        hurried = httpx.post(
            f"{server.url}/v1/classify", content=photo(), headers={"X-Request-Timeout-Ms": "300"}, timeout=120
        )
        before_the_other = busy.is_alive()
        busy.join()
        patient = httpx.post(
            f"{server.url}/v1/classify", content=photo(), headers={"X-Request-Timeout-Ms": "9" * 30}, timeout=120
        )

        assert (504, "deadline_exceeded") == (hurried.status_code, hurried.json()["code"])
        assert before_the_other
        assert 200 == patient.status_code
        assert 2 == server.metric('vim_batch_size_sum{model="tiny"}') - ran_before
