"""The command line with a server that is busy, gone or of another kind; a fake server on loopback plays it."""

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


class FakeServer:
    """A fake server: `reply` gets the number of earlier posts and the image, and returns the answer."""

    def __init__(self) -> None:
        self.info: Reply = (200, {}, INFO)
        self.reply: Callable[[int, bytes], Reply] = lambda _, data: classified(data.decode())
        self.posts = 0
        self.paths: list[str] = []
        self.asked: list[str] = []  # the paths of all requests, also those for /info
        self.together = 0
        self.most_together = 0
        self._lock = threading.Lock()

    def post(self, path: str, body: bytes) -> Reply:
        """Answer one request, and count the requests at the same time."""
        with self._lock:
            number, self.posts = self.posts, self.posts + 1
            self.paths.append(path)
            self.asked.append(path)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            return self.reply(number, body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
        finally:
            with self._lock:
                self.together -= 1


def classified(label: str) -> Reply:
    """A successful answer with one class."""
    return 200, {}, {"model": MODEL, "results": [{"predictions": [{"index": 1, "label": label, "score": 0.5}]}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeServer, str]]:
    """A fake server and its URL; waits between tries are short."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fake.asked.append(self.path)
            self._answer(fake.info)

        def do_POST(self) -> None:
            self._answer(fake.post(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

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
    yield fake, f"http://127.0.0.1:{listener.server_address[1]}"
    listener.shutdown()
    thread.join()
    listener.server_close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twenty files that contain their own numbers."""
    for number in range(20):
        (tmp_path / f"{number:02}.jpg").write_text(f"{number:02}")
    return [str(tmp_path / f"{number:02}.jpg") for number in range(20)]


def labels(out: str) -> list[str]:
    """The best label of each JSON line."""
    return [json.loads(line)["predictions"][0]["label"] for line in out.splitlines()]


def test_several_requests_at_once_and_answers_in_order(
    server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers keep the order of the files, --batch limits the requests at once, and options are in the query."""
    fake, url = server

    def slow(number: int, data: bytes) -> Reply:
        time.sleep(0.3 if data == b"00" else 0.02)
        return classified(data.decode())

    fake.reply = slow

    assert 0 == main(["classify", *files, "--url", url, "--json", "--batch", "4", "--top-k", "2"])

    assert [f"{number:02}" for number in range(20)] == labels(capsys.readouterr().out)
    assert 1 < fake.most_together <= 4
    assert {"/v1/classify?top_k=2"} == set(fake.paths)


def test_a_busy_server_is_asked_again(
    server: tuple[FakeServer, str],
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After 429 and 503 the image is sent again when Retry-After says, and no image is lost."""
    fake, url = server
    waits: list[str | None] = []

    def wait(_: int, retry_after: str | None) -> float:
        waits.append(retry_after)
        return 0

    monkeypatch.setattr(remote, "wait_s", wait)
    not_ready: Reply = (503, {"Retry-After": "7"}, {"code": "not_ready", "detail": "loading"})
    fake.reply = lambda number, data: (BUSY, not_ready, classified(data.decode()))[number % 3]

    assert 0 == main(["classify", *files, "--url", url, "--json", "--batch", "1"])

    assert [f"{number:02}" for number in range(20)] == labels(capsys.readouterr().out)
    assert ["0", "7"] * 20 == waits


def test_tries_are_bounded_and_what_was_answered_is_kept(
    server: tuple[FakeServer, str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the last try the embeddings so far are written, and the message says where and why it stopped."""
    fake, url = server
    row = base64.b64encode(np.arange(3, dtype="<f4").tobytes()).decode()
    good: Reply = (200, {}, {"model": MODEL, "results": [{"embedding": row}]})
    fake.reply = lambda number, _: good if number < 2 else BUSY

    assert 1 == main(["embed", *files, "--url", url, "--batch", "1", "--out", str(tmp_path / "e")])

    assert 2 + remote.TRIES == fake.posts
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), [[0, 1, 2]] * 2)
    assert files[:2] == (tmp_path / "e.names.txt").read_text().splitlines()
    err = capsys.readouterr().err
    assert "stopped after 2 of 20" in err
    assert "answers 429 after 10 tries: queue full" in err


def test_an_images_own_error_stops_nobody_else(
    server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An image's own error is reported and the others are answered; a file that is too large is not sent."""
    fake, url = server
    Path(files[1]).write_bytes(bytes(20_000))
    bad: Reply = (415, {}, {"code": "unsupported_image", "detail": "no image"})
    fake.reply = lambda _, data: bad if data == b"00" else classified(data.decode())

    assert 1 == main(["classify", *files[:4], "--url", url])

    out, err = capsys.readouterr()
    assert ["02", "03"] == [line.split()[2] for line in out.splitlines()[1:]]
    assert f"{files[0]}: no image\n" in err
    assert f"{files[1]}: larger than" in err
    assert "2 of 4 images by m (fingerprint 0123456789ab), 2 failed" in err
    assert 3 == fake.posts


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
    info: Reply, server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server of another kind gives one message with status and type, and no image is sent."""
    fake, url = server
    fake.info = info

    assert 1 == main(["classify", *files, "--url", url])

    err = capsys.readouterr().err
    assert f"{url}/info does not answer as this server does: {info[0]}" in err
    assert 0 == fake.posts


def test_an_answer_that_makes_no_sense_stops_the_command(
    server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer that is not from this service, such as a proxy's page, stops the command."""
    fake, url = server
    fake.reply = lambda *_: (502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>")

    assert 1 == main(["classify", *files, "--url", url])
    assert "does not answer as this server does: 502 text/html" in capsys.readouterr().err


def test_a_model_without_classes_is_told_before_the_first_image(
    server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without classes is reported from /info, before an image is sent."""
    fake, url = server
    fake.info = (200, {}, INFO | {"model": MODEL | {"classes": 0}})

    assert 1 == main(["classify", *files, "--url", url])
    assert "no classifier head" in capsys.readouterr().err
    assert 0 == fake.posts


def test_the_model_is_named_in_every_request(server: tuple[FakeServer, str], files: list[str]) -> None:
    """`--model` is sent to /info and with each image; without it nothing is."""
    fake, url = server
    fake.info = (200, {}, INFO | {"models": [MODEL, MODEL | {"name": "other"}]})

    assert 0 == main(["classify", files[0], "--url", url, "--model", "m"])
    assert 0 == main(["info", "--url", url, "--model", "m"])
    assert 0 == main(["classify", files[0], "--url", url])
    named, unnamed = (
        ["/info?model=m", "/v1/classify?top_k=5&model=m", "/info?model=m"],
        ["/info", "/v1/classify?top_k=5"],
    )
    assert named + unnamed == fake.asked


def test_an_older_server_is_not_sent_a_model(
    server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that lists no models would refuse the option; its only model may be named, and no other."""
    fake, url = server

    assert 0 == main(["classify", files[0], "--url", url, "--model", "m"])
    assert ["/v1/classify?top_k=5"] == fake.paths
    capsys.readouterr()
    for command in (["info"], ["classify", files[0]]):
        assert 1 == main([*command, "--url", url, "--model", "other"])
        assert f"{url} has no model 'other'; it has m\n" == capsys.readouterr().err
    assert 1 == fake.posts


@pytest.mark.parametrize("missing_at", ["info", "image"])
def test_an_unknown_model_is_the_servers_message(
    missing_at: str, server: tuple[FakeServer, str], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the server's line, which has the known names; also if the model is unloaded meanwhile."""
    fake, url = server
    unknown: Reply = (404, {}, {"code": "model_not_found", "detail": "no model 'm'; this server has 'a', 'b'"})
    fake.info = unknown if missing_at == "info" else (200, {}, INFO | {"models": [MODEL]})
    fake.reply = lambda *_: unknown

    assert 1 == main(["classify", *files, "--url", url, "--model", "m", "--batch", "1"])
    assert "no model 'm'; this server has 'a', 'b'\n" in capsys.readouterr().err
    assert int(missing_at == "image") == fake.posts


def test_nobody_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """A refused connection gives one message at once, without further tries."""
    assert 1 == main(["info", "--url", "http://127.0.0.1:1"])
    assert "no answer from http://127.0.0.1:1" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet(server: tuple[FakeServer, str], files: list[str]) -> None:
    """When its pipe is closed, as by `head -1`, the command ends without a message."""
    fake, url = server
    command = [sys.executable, "-m", "service", "classify", *files, "--json", "--batch", "1", "--url", url]

    def slow(_: int, data: bytes) -> Reply:
        time.sleep(0.05)
        return classified(data.decode())

    fake.reply = slow
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert b"" == process.stderr.read()
        assert 141 == process.wait(30)
