"""uvicorn's HTTP/1.1 protocol with more time and size limits for slow or hostile clients.

uvicorn closes a connection only when it is idle after an answer. This class also closes a connection in these cases:

- The header of a request is not complete in time, or no request arrives at all.
- The bytes of a request that are not its body, such as headers, exceed `MOST_HEADER_BYTES`.
- A request was answered before its end, and the rest of it does not arrive in time.
- The client does not read its answer.

An offer to upgrade (`curl --http2` and Java's client send one) is ignored, as RFC 9110 allows. httptools would treat
the bytes after the header as another protocol. uvicorn would then answer without the body, and read the body as the
next request.
"""

from __future__ import annotations

import sys
from asyncio import TimerHandle, Transport
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.system import descriptors

MOST_HEADER_BYTES = 65_536
PROBE_S = 0.05  # before the second probe of a half-closed connection; doubled each time, up to a second
_REFUSAL = "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class AnyLength(int):
    """The length of a body that uvicorn must not check: with HTTP/1.0 the end of the connection ends the body."""

    def __lt__(self, _: object) -> bool:
        return False

    def __ne__(self, _: object) -> bool:
        return False

    def __eq__(self, _: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __sub__(self, _: int) -> AnyLength:
        return self


class Protocol(HttpToolsProtocol):
    """One connection. `header_timeout_s` limits the time for each request's header, `write_timeout_s` the time that a
    client may stop reading its answer.
    """

    header_timeout_s = 10.0
    write_timeout_s = 30.0
    max_connections = 1 << 20

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._late: TimerHandle | None = None
        self._unread: TimerHandle | None = None
        self._in_header = False
        self._overhead = 0  # bytes of this request that are not body
        self._body = 0
        self._offered = False  # this request's header offers to upgrade
        self._header_end = 0
        self._half_closed = False  # the client has sent everything, and may still read
        self._invalid = ""  # why the rest of the data is not a request; answered after the requests before it

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the timer for the first header. A connection beyond the limit is answered with 503 and closed."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._in_header = True
            self._refuse("503 Service Unavailable")
        else:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass the data to the parser. Then check the size, and start the timer if no request is being processed."""
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
        """A request begins: start the timer for its header."""
        super().on_message_begin()
        self._in_header = True
        self._await_header()

    def on_headers_complete(self) -> None:
        """Stop the timer: from here on the time limits of the application apply."""
        self._offered = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offered:
            return
        version = self.parser.get_http_version()
        if version == "1.1" and (hosts := [name for name, _ in self.headers].count(b"host")) != 1:
            self._invalid = f"An HTTP/1.1 request must have one Host header (RFC 9112); this one has {hosts or 'none'}."
            raise ValueError(self._invalid)  # the parser stops, and uvicorn calls `send_400_response`
        self._in_header = False
        self._stop_waiting()
        self.expect_100_continue = self.expect_100_continue and version != "1.0"
        super().on_headers_complete()
        if version == "1.0":
            self.cycle.chunked_encoding, self.cycle.expected_content_length = False, AnyLength()

    def on_body(self, body: bytes) -> None:
        """Do not count the body as overhead: the application limits it."""
        self._overhead -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Reset the counters for the next request."""
        if self._offered:
            return
        self._overhead = self._body = 0
        super().on_message_complete()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection for the answers to complete requests: the client may have closed its side only."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.transport.get_extra_info("sslcontext"):
            return None  # closes the connection
        self._half_closed = True
        if self.parser.get_http_version() == "1.1":
            self._probe(PROBE_S)
        return True

    def _probe(self, pause_s: float) -> None:
        """Find out whether a client that has closed its side still reads.

        A client that has left resets the connection when something is sent, and what is sent next fails. Clients of
        HTTP/1.1 ignore interim responses before the answer (RFC 9110).
        """
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started and not self.pipeline:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(pause_s, self._probe, min(1.0, 2 * pause_s))

    def send_400_response(self, msg: str) -> None:
        """Answer data that is not a request, after the requests before it; or a request whose body is malformed."""
        self._invalid = self._invalid or msg
        self._stop_waiting()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            super().send_400_response(self._invalid)
        elif not cycle.more_body or self.pipeline:
            self.flow.pause_reading()
        elif cycle.response_started:  # a client sees that the answer is cut short
            self.transport.close()
        else:
            super().send_400_response(self._invalid)

    def _unsupported_upgrade_warning(self) -> None:
        """Note where the header ends. uvicorn calls this when the parser stops after a header with an upgrade."""
        stopped = sys.exception()
        self._header_end = stopped.args[0] if stopped else 0

    def _plain_header(self) -> bytes:
        """The header without the offer to upgrade."""
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_response_complete(self) -> None:
        """Finish the answer. If the request has not ended, read the rest for a while, so that the answer arrives."""
        answered_early = self.cycle.more_body
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if answered_early:
            self._await_header()
        if not self.cycle.response_complete:
            return
        if self._invalid and not answered_early:
            super().send_400_response(self._invalid)
        elif self._invalid or self._half_closed:  # invalid: this was the answer to the malformed request
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads too slowly: start the timer for it."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again: stop the timer."""
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
        """Answer without a body, because such clients do not read it, and close the connection."""
        if self._in_header:
            self.transport.write(_REFUSAL.format(status=status).encode("ascii"))
        self.transport.close()


def protocol(header_timeout_s: float, max_connections: int | None = None) -> type[Protocol]:
    """Return a class with these limits, because uvicorn creates the connections without extra arguments.

    Unless `max_connections` is given, connections are bounded by the descriptors that the process may still open,
    without those that a restart of a device process needs.
    """
    limits = {"header_timeout_s": header_timeout_s, "max_connections": max_connections or descriptors.available()}
    return type("Protocol", (Protocol,), limits)
