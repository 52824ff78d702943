"""The server as a process: start-up, signals, exit statuses, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import raw
from tests.e2e.server import Server, gone, serving
from tests.tiny import photo


def test_answers_a_photograph_and_keeps_torch_out_of_the_http_process(tmp_path: Path, tiny: Path) -> None:
    """torch is mapped by the device process alone; SIGTERM then ends both with status 0."""
    with serving(tmp_path, model=tiny) as server, server.client() as client:
        answer = client.post(
            "/v1/classify", content=photo(), headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert 200 == answer.status_code
        assert 5 == len(answer.json()["results"][0]["predictions"])
        device = server.device_pid()
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{device}/maps").read_text()

        server.signal(signal.SIGTERM)
        assert 0 == server.exit_status()
        assert gone(device, within_s=30)  # `make chaos` requires 5 s


def test_sigterm_turns_readiness_off_then_finishes_accepted_work(tmp_path: Path, tiny: Path) -> None:
    """During the drain delay the server listens and serves; accepted requests are answered; the exit status is 0."""
    with serving(tmp_path, model=tiny, drain_delay_ms=1500) as server, server.client() as client:
        assert 200 == client.post("/v1/classify", content=photo()).status_code
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: client.get("/readyz").status_code == 503)
        assert 200 == client.get("/livez").status_code
        statuses, closed = list[int](), list[bool]()

        def slow_request() -> None:
            """A body that is complete only after the listener has closed."""

            def body() -> Iterator[bytes]:
                data = photo()
                yield data[:100]
                closed.append(raw.until(lambda: not _listens(server)))
                yield data[100:]

            statuses.append(httpx.post(f"{server.url}/v1/classify", content=body(), timeout=120).status_code)

        thread = threading.Thread(target=slow_request)
        thread.start()
        assert 0 == server.exit_status()
        thread.join()
        assert ([True], [200]) == (closed, statuses)


def _listens(server: Server) -> bool:
    try:
        raw.connect(server).close()
    except ConnectionRefusedError:
        return False
    return True


def test_control_c_ends_it_cleanly(tmp_path: Path, tiny: Path) -> None:
    """SIGINT to the process group ends the server cleanly; the device process does not react to it."""
    with serving(tmp_path, model=tiny) as server:
        os.killpg(server.process.pid, signal.SIGINT)
        assert 0 == server.exit_status()
        assert "Traceback" not in server.log


def test_control_c_during_a_drain_ends_it_at_once(tmp_path: Path, tiny: Path) -> None:
    """Ctrl-C while the server drains ends it at once."""
    with serving(tmp_path, model=tiny, drain_delay_ms=60_000) as server:
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: "SIGTERM: draining" in server.log)
        server.signal(signal.SIGINT)
        assert 128 + signal.SIGINT == server.exit_status(timeout=30)


@pytest.mark.parametrize("hangs", [False, True])
def test_no_device_process_survives_its_parent(tmp_path: Path, tiny: Path, hangs: bool) -> None:
    """No device process survives its parent, even when the parent is killed or the device process hangs."""
    with serving(tmp_path, model=tiny) as server:
        device = server.device_pid()
        if hangs:
            os.kill(device, signal.SIGSTOP)
        server.signal(signal.SIGKILL)
        server.exit_status()
        assert gone(device, within_s=30)  # `make chaos` requires 5 s


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"modle": "demo"}, 2, "VIM_MODEL"),
        ({"max_batch": "many"}, 2, "VIM_MAX_BATCH"),
        ({"model": "/nowhere/at/all.pth"}, 1, "/nowhere/at/all.pth does not exist"),
        ({"scan": "tritn"}, 1, "unknown scan 'tritn'"),
    ],
)
def test_a_wrong_configuration_exits_non_zero_and_says_why(
    tmp_path: Path, settings: dict[str, Any], status: int, says: str
) -> None:
    """The exit status is 2 for invalid settings and 1 for a model or scan that cannot be served."""
    server = Server(tmp_path / "server.log", **settings)

    assert status == server.exit_status()
    assert says in server.log
    assert "Traceback" not in server.log


def test_a_port_in_use_exits_non_zero(tmp_path: Path, tiny: Path) -> None:
    """A port in use ends the second server with a message, and the first one continues."""
    with serving(tmp_path, model=tiny) as first:
        (tmp_path / "second").mkdir()
        second = Server(tmp_path / "second" / "server.log", model=tiny, port=first.url.rsplit(":", 1)[1])
        assert second.exit_status() == 1
        assert "address already in use; set VIM_PORT" in second.log
        with first.client() as client:
            assert 200 == client.get("/readyz").status_code
