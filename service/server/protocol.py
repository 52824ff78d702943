"""uvicorn's HTTP/1.1 protocol with the timers that it lacks, so that no connection is held for nothing.

uvicorn closes a connection that is idle after an answer, and no other. Here one is closed as well when a request's
header is not complete in time (nothing at all included), when what is not body grows too large, when the rest of a
request that has already been answered does not end, and when a client does not read its answer.

An offer to upgrade (`curl --http2` and Java's client make one) is ignored, as RFC 9110 allows. httptools would take
what follows the header for another protocol, so that uvicorn answers without the body and reads it as the next request.
"""

from __future__ import annotations

import sys
from asyncio import TimerHandle, Transport
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 65_536
_SAYS = "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class WholeAnswers:
    """A transport that writes an answer's head together with its body: one system call and one packet less.

    Only where the head announces the body's length: then the body is there already. Answers in pieces go as they come.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """At once, or with what is written next."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines([head, data])
        elif data.startswith(b"HTTP/1.1 ") and b"\r\ncontent-length: " in data:
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """The answer is complete, with a body or without."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """What was written before arrives."""
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection. `header_timeout_s` is for each request's header, `write_timeout_s` for a client that stops
    reading its answer.
    """

    header_timeout_s = 10.0
    write_timeout_s = 30.0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._late: TimerHandle | None = None
        self._unread: TimerHandle | None = None
        self._in_header = False
        self._overhead = 0  # bytes of this request that are not body
        self._body = 0
        self._offered = False  # this request's header offers to upgrade
        self._header_end = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """The first header is awaited from here on."""
        super().connection_made(transport)
        self.transport = WholeAnswers(transport)  # type: ignore[assignment]
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; then see that a request is under way, or time runs."""
        self._overhead += len(data)
        super().data_received(data)
        while self._offered:
            data = self._plain_header() + data[self._header_end :]
            self.parser, self._offered = httptools.HttpRequestParser(self), False
            super().data_received(data)
        if self.transport.is_closing():
            return
        if self._overhead > MOST_HEADER_BYTES + self._body:
            self._refuse("431 Request Header Fields Too Large")
        elif self.cycle is None or self.cycle.response_complete:
            self._await_header()

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._in_header = True
        self._await_header()

    def on_headers_complete(self) -> None:
        """From here on the application has its own limits of time."""
        self._offered = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offered:
            return
        self._in_header = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Counted apart: the application limits it."""
        self._overhead -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request is counted anew."""
        if self._offered:
            return
        self._overhead = self._body = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn when the parser stops at the end of such a header, and says where that was."""
        stopped = sys.exception()
        self._header_end = stopped.args[0] if stopped else 0

    def _plain_header(self) -> bytes:
        """The same header, as if it had offered nothing."""
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_response_complete(self) -> None:
        """Of a request that was answered before its end the rest is read for a while, so that the answer arrives."""
        self.transport.flush()  # type: ignore[attr-defined]
        answered_early = self.cycle.more_body
        super().on_response_complete()
        if answered_early and not self.transport.is_closing():
            self._await_header()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _await_header(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.header_timeout_s, self._on_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _on_late(self) -> None:
        self._late = None
        if self._in_header:
            self._refuse("408 Request Timeout")
        else:
            self.transport.close()

    def _refuse(self, status: str) -> None:
        """Without a body: nobody who sends such a request reads it."""
        if self._in_header:
            self.transport.write(_SAYS.format(status=status).encode("ascii"))
        self.transport.close()


def protocol(header_timeout_s: float) -> type[Protocol]:
    """The class with this time-out: uvicorn creates the connections itself, without arguments of ours."""
    return type("Protocol", (Protocol,), {"header_timeout_s": header_timeout_s})
