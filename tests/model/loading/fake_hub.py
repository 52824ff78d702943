"""A stand-in for the Hugging Face hub on 127.0.0.1, with as much of its protocol as huggingface_hub 2.4.0 uses.

HEAD and GET /{repo}/resolve/{revision}/{file} with ETag, X-Repo-Commit and ranges; /api/models/{repo}/tree/{revision}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

REVISIONS = {"main": "a" * 40, "v1": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}
_CHUNK = 1 << 16


@dataclass
class FakeHub:
    """The hub's repositories, the faults that it simulates, and the requests that it received."""

    url: str = ""
    repos: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: int | None = None  # a status to answer everything with
    portal: bool = False  # answer everything with a web page, as a sign-in page of a network does
    cut_after: int | None = None  # bytes of a body after which the connection breaks, at every attempt
    stall_after: int | None = None  # bytes of a body after which the server sends no more
    flip: bool = False  # damage the first byte of every body
    requests: list[str] = field(default_factory=list)

    def add(self, repo: str, **files: bytes | Path) -> None:
        """Put files into a repository; `model_pth` stands for `model.pth`."""
        self.repos.setdefault(repo, {}).update({name.replace("_", ".", 1): body for name, body in files.items()})


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run an empty hub on a free port."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Suppress the log of the server."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            self._refuse(self.hub.broken, "", "out of order")
        elif self.hub.portal:
            self._send(200, b"<html>Sign in</html>", {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            self._tree(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._refuse(404, "", "not a path of this stand-in")

    def _tree(self, repo: str, revision: str) -> None:
        if self._known(repo, revision):
            files = self.hub.repos[repo]
            rows = [
                {"type": "file", "path": name, "size": len(_head(body)), "oid": "0"} for name, body in files.items()
            ]
            self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not self._known(repo, revision):
            return
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo", "ask for access")
            return
        if name not in self.hub.repos[repo]:
            self._refuse(404, "EntryNotFound", "no such file", REVISIONS[revision])
            return
        body = self.hub.repos[repo][name]
        self._send(
            200, body, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": REVISIONS[revision], "Accept-Ranges": "bytes"}
        )

    def _known(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in REVISIONS:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _refuse(self, status: int, code: str, message: str, commit: str = "") -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._send(status, b"", {name: value for name, value in named.items() if value})

    def _send(self, status: int, body: bytes | Path, headers: dict[str, str]) -> None:
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_response(206 if found else status)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in (headers | {"Content-Length": str(size - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._stream(body, start)

    def _stream(self, body: bytes | Path, start: int) -> None:
        sent = 0
        for chunk in _chunks(body, start):
            damaged = bytes([chunk[0] ^ 1]) + chunk[1:] if self.hub.flip and sent == 0 else chunk
            limit = len(chunk) if self.hub.cut_after is None else max(0, self.hub.cut_after - start - sent)
            self.wfile.write(damaged[:limit])
            sent += limit
            if self.hub.stall_after is not None and sent >= self.hub.stall_after:
                Event().wait(60)
            if limit < len(chunk):
                self.close_connection = True
                return


def _chunks(body: bytes | Path, start: int) -> Iterator[bytes]:
    if isinstance(body, Path):
        with body.open("rb") as file:
            file.seek(start)
            while chunk := file.read(_CHUNK):
                yield chunk
    else:
        yield from (body[at : at + _CHUNK] for at in range(start, len(body), _CHUNK))


def _head(body: bytes | Path) -> bytes:
    return b"" if isinstance(body, Path) else body


def _etag(body: bytes | Path) -> str:
    """Large files carry their sha256, as on the hub."""
    if isinstance(body, Path):
        with body.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(body).hexdigest()
