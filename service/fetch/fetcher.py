"""Fetches a URL: checks it, dials a checked address, follows redirects, reads within limits. The server's httpx2.

httpx2's client is not used, because it has cookies, proxies from the environment and redirects of its own. A transport
sends one request and keeps nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx2

from service import __version__
from service.fetch import addresses, hosts
from service.fetch.addresses import Address
from service.fetch.hosts import Rule, Target
from service.fetch.outcome import FetchError
from service.system import blocking

MOST_REDIRECTS = 3
MOST_ADDRESSES = 4  # of a name are tried; all are checked
_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = {
    "User-Agent": f"vim-server/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # a few bytes could unpack to gigabytes
    "Connection": "close",  # a connection to an address must not serve another name
}

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]  # a name and a port to addresses


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bytes of one file, seconds for one fetch with look-up and redirects, and fetches at once."""

    max_bytes: int
    timeout_s: float
    concurrency: int


class Fetcher:
    """Fetches from the hosts that the rules admit. `is_public` and `resolver` can be others in tests."""

    def __init__(
        self,
        rules: Sequence[Rule],
        limits: FetchLimits,
        *,
        resolver: Resolver | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        is_public: Callable[[Address], bool] = addresses.is_public,
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._resolver = resolver or resolve
        self._transport = transport or direct()
        self._is_public = is_public
        self._permits = asyncio.Semaphore(limits.concurrency)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def fetch(self, url: str, receive: Callable[[int], None]) -> bytes:
        """Return the bytes at the URL. `receive` is called with the size of each piece, and may raise to refuse it.

        Waits while as many others are fetched as the limits allow. Raises FetchError.
        """
        limit_s = self._limits.timeout_s
        async with self._permits:
            try:
                async with asyncio.timeout(limit_s):
                    return await self._follow(url, receive)
            except (TimeoutError, httpx2.TimeoutException):
                raise FetchError("timeout", f"not done within {limit_s:g} s (VIM_FETCH_TIMEOUT_MS)") from None
            except httpx2.RemoteProtocolError:  # whose text has bytes of the response
                raise FetchError("unreachable", "the response is not HTTP/1.1, or it ended early") from None
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
                raise FetchError("unreachable", _words(error)) from None

    async def _follow(self, url: str, receive: Callable[[int], None]) -> bytes:
        for _ in range(1 + MOST_REDIRECTS):
            target = hosts.allowed(url, self._rules)
            response = await self._ask(target)
            try:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response, receive)
                url = _next(url, response)
            finally:
                await response.aclose()
        raise FetchError("bad_response", f"more than {MOST_REDIRECTS} redirects")

    async def _ask(self, target: Target) -> httpx2.Response:
        """Send the request to the first address that accepts a connection; the response's body is not read yet."""
        checked = (await self._checked(target))[:MOST_ADDRESSES]
        failures = []
        for address in checked:
            request = _request(target, address, self._limits.timeout_s / len(checked))
            try:
                return await self._transport.handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failures.append(f"{address}: {_words(error)}")
        raise FetchError("unreachable", "; ".join(failures))

    async def _checked(self, target: Target) -> list[Address]:
        """The addresses of the host, asked for once. Raises FetchError if one of them is not public."""
        literal = addresses.literal(target.host)
        texts = [target.host] if literal else await self._resolver(target.host, target.port)
        found = [address for text in texts if (address := addresses.literal(text))]
        if not found or len(found) < len(texts):
            raise FetchError("unreachable", f"the name has no address: {', '.join(texts)}")
        if refused := next((one for one in found if not self._is_public(one)), None):
            raise FetchError("not_allowed", f"{refused} is not a public address")
        return found

    async def _read(self, response: httpx2.Response, receive: Callable[[int], None]) -> bytes:
        limit = self._limits.max_bytes
        if response.status_code != httpx2.codes.OK:
            raise FetchError("bad_response", f"status {response.status_code}")
        if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
            raise FetchError("bad_response", f"Content-Encoding {encoding}, which was not asked for")
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise FetchError("too_large", f"{declared[:20]} bytes; the limit is {limit} (VIM_FETCH_MAX_BYTES)")
        pieces, size = [], 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > limit:
                raise FetchError("too_large", f"more than {limit} bytes (VIM_FETCH_MAX_BYTES)")
            receive(len(piece))
            pieces.append(piece)
        return await blocking.run(b"".join, pieces)  # in a thread: CPython releases its lock while it copies


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the operating system orders them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def direct(context: ssl.SSLContext | None = None) -> httpx2.AsyncHTTPTransport:
    """A transport that ignores the environment, verifies certificates and keeps no connection."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=context or True, trust_env=False, limits=limits)


def _request(target: Target, address: Address, connect_s: float) -> httpx2.Request:
    """The request to an address. Host header, SNI and the check of the certificate use the name."""
    url = httpx2.URL(scheme=target.scheme, host=str(address), port=target.port, raw_path=target.path.encode("ascii"))
    extensions = {"sni_hostname": target.host, "timeout": {"connect": connect_s}}
    return httpx2.Request("GET", url, headers={"Host": target.authority} | _HEADERS, extensions=extensions)


def _next(url: str, response: httpx2.Response) -> str:
    try:
        return urljoin(url, response.headers["location"])
    except (KeyError, ValueError):
        raise FetchError("bad_response", f"status {response.status_code} without a usable Location") from None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
