"""The command line against a server that is busy, gone or something else; a stand-in on loopback plays it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from service.cli import remote
from service.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
MODEL = {"name": "m", "fingerprint": "0123456789ab"}
INFO = {"model": MODEL | {"classes": 3}, "limits": {"max_body_bytes": 10_000}}
Reply = tuple[int, dict[str, str], object]
BUSY: Reply = (429, {"Retry-After": "0"}, {"code": "queue_full", "detail": "queue full"})


class StandIn:
    """Answers as `reply` says, given how many posts there were before and the body's image."""

    def __init__(self) -> None:
        self.info: Reply = (200, {}, INFO)
        self.reply: Callable[[int, bytes], Reply] = lambda _, data: classified(data.decode())
        self.posts = 0
        self.paths: list[str] = []
        self.together = 0
        self.most_together = 0
        self._lock = threading.Lock()

    def post(self, path: str, body: bytes) -> Reply:
        """One request's whole time here."""
        with self._lock:
            number, self.posts = self.posts, self.posts + 1
            self.paths.append(path)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            return self.reply(number, body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
        finally:
            with self._lock:
                self.together -= 1


def classified(label: str) -> Reply:
    """A good answer."""
    return 200, {}, {"model": MODEL, "results": [{"predictions": [{"index": 1, "label": label, "score": 0.5}]}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandIn, str]]:
    """A stand-in and its URL; waits between tries are short."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(stand_in.info)

        def do_POST(self) -> None:
            self._answer(stand_in.post(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, reply: Reply) -> None:
            status, headers, content = reply
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body))}.items() | headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    yield stand_in, f"http://127.0.0.1:{listener.server_address[1]}"
    listener.shutdown()
    thread.join()
    listener.server_close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twenty files whose bytes are their names."""
    for number in range(20):
        (tmp_path / f"{number:02}.jpg").write_text(f"{number:02}")
    return [str(tmp_path / f"{number:02}.jpg") for number in range(20)]


def labels(out: str) -> list[str]:
    """The best label of each JSON line."""
    return [json.loads(line)["predictions"][0]["label"] for line in out.splitlines()]


def test_several_requests_at_once_and_answers_in_order(
    server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first image is the slowest; --batch bounds what is under way; options travel in the query."""
    stand_in, url = server

    def slow(number: int, data: bytes) -> Reply:
        time.sleep(0.3 if data == b"00" else 0.02)
        return classified(data.decode())

    stand_in.reply = slow

    assert 0 == main(["classify", *files, "--url", url, "--json", "--batch", "4", "--top-k", "2"])

    assert [f"{number:02}" for number in range(20)] == labels(capsys.readouterr().out)
    assert 1 < stand_in.most_together <= 4
    assert {"/v1/classify?top_k=2"} == set(stand_in.paths)


def test_a_busy_server_is_asked_again(
    server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 and 503, as late as Retry-After says; no image is lost."""
    stand_in, url = server
    waits: list[str | None] = []

    def wait(_: int, retry_after: str | None) -> float:
        waits.append(retry_after)
        return 0

    monkeypatch.setattr(remote, "wait_s", wait)
    not_ready: Reply = (503, {"Retry-After": "7"}, {"code": "not_ready", "detail": "loading"})
    stand_in.reply = lambda number, data: (BUSY, not_ready, classified(data.decode()))[number % 3]

    assert 0 == main(["classify", *files, "--url", url, "--json", "--batch", "1"])

    assert [f"{number:02}" for number in range(20)] == labels(capsys.readouterr().out)
    assert ["0", "7"] * 20 == waits


def test_tries_are_bounded_and_what_was_answered_is_kept(
    server: tuple[StandIn, str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embeddings so far are written; the message says how far it came and why it stopped."""
    stand_in, url = server
    row = base64.b64encode(np.arange(3, dtype="<f4").tobytes()).decode()
    good: Reply = (200, {}, {"model": MODEL, "results": [{"embedding": row}]})
    stand_in.reply = lambda number, _: good if number < 2 else BUSY

    assert 1 == main(["embed", *files, "--url", url, "--batch", "1", "--out", str(tmp_path / "e")])

    assert 2 + remote.TRIES == stand_in.posts
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), [[0, 1, 2]] * 2)
    assert files[:2] == (tmp_path / "e.names.txt").read_text().splitlines()
    err = capsys.readouterr().err
    assert "stopped after 2 of 20" in err
    assert "answers 429 after 10 tries: queue full" in err


def test_an_images_own_error_stops_nobody_else(
    server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported with the server's words; a file that is too large is not even sent."""
    stand_in, url = server
    Path(files[1]).write_bytes(bytes(20_000))
    bad: Reply = (415, {}, {"code": "unsupported_image", "detail": "no image"})
    stand_in.reply = lambda _, data: bad if data == b"00" else classified(data.decode())

    assert 1 == main(["classify", *files[:4], "--url", url])

    out, err = capsys.readouterr()
    assert ["02", "03"] == [line.split()[2] for line in out.splitlines()[1:]]
    assert f"{files[0]}: no image\n" in err
    assert f"{files[1]}: larger than" in err
    assert "2 of 4 images by m (fingerprint 0123456789ab), 2 failed" in err
    assert 3 == stand_in.posts


@pytest.mark.parametrize(
    "info",
    [
        (404, {}, {"detail": "Not Found"}),
        (200, {}, b"<!DOCTYPE html>"),
        (200, {}, {"model": "m"}),
        (200, {}, []),
        (302, {"Location": "https://elsewhere/"}, b""),
    ],
)
def test_another_kind_of_server_is_recognised(
    info: Reply, server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One message with status and type; no traceback, and no image is sent."""
    stand_in, url = server
    stand_in.info = info

    assert 1 == main(["classify", *files, "--url", url])

    err = capsys.readouterr().err
    assert f"{url}/info does not answer as this server does: {info[0]}" in err
    assert 0 == stand_in.posts


def test_an_answer_that_makes_no_sense_stops_the_command(
    server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy's page, say, in the middle of a run."""
    stand_in, url = server
    stand_in.reply = lambda *_: (502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>")

    assert 1 == main(["classify", *files, "--url", url])
    assert "does not answer as this server does: 502 text/html" in capsys.readouterr().err


def test_a_model_without_classes_is_told_before_the_first_image(
    server: tuple[StandIn, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """From what /info says."""
    stand_in, url = server
    stand_in.info = (200, {}, INFO | {"model": MODEL | {"classes": 0}})

    assert 1 == main(["classify", *files, "--url", url])
    assert "no classifier head" in capsys.readouterr().err
    assert 0 == stand_in.posts


def test_nobody_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """At once: a wrong port does not become right by waiting."""
    assert 1 == main(["info", "--url", "http://127.0.0.1:1"])
    assert "no answer from http://127.0.0.1:1" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet(server: tuple[StandIn, str], files: list[str]) -> None:
    """`... | head -1` ends the command without a word."""
    stand_in, url = server
    command = [sys.executable, "-m", "service", "classify", *files, "--json", "--batch", "1", "--url", url]

    def slow(_: int, data: bytes) -> Reply:
        time.sleep(0.05)
        return classified(data.decode())

    stand_in.reply = slow
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert b"" == process.stderr.read()
        assert 141 == process.wait(30)
