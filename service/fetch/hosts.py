"""Which URLs may be fetched: reads VIM_FETCH_HOSTS, and takes a URL apart into what is dialled and sent.

Nothing reads the URL a second time, so no other program can understand it in another way. Where a name leads is not
known here; `service.fetch.fetcher` checks the addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote

import idna

from service.fetch.addresses import is_public, literal
from service.fetch.outcome import FetchError

LOOKS = "hosts such as images.example.org, .example.org, cdn.example.org:8443 or *, separated by commas"
PORTS = (80, 443)

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@%]+))(?::([0-9]{1,5}))?", re.IGNORECASE)
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x.*")  # a host whose last label is one is an IPv4 address in some spelling
_LONGEST_NAME = 253
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_PRINTABLE = "".join(map(chr, range(33, 127)))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts: `host` without brackets, lower case and ASCII; `path` with the query, ASCII."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of VIM_FETCH_HOSTS. Without a port it admits 80 and 443."""

    host: str  # *: every host
    subdomains: bool  # of the host, and the host itself
    port: int | None

    def admits(self, target: Target) -> bool:
        """Return whether the entry names the host and the port."""
        if target.port != self.port and (self.port is not None or target.port not in PORTS):
            return False
        return self.host in ("*", target.host) or (self.subdomains and target.host.endswith(f".{self.host}"))


def rules(text: str) -> tuple[Rule, ...]:
    """Read VIM_FETCH_HOSTS. Raises ValueError for an entry that is no host, or an address that is not public."""
    return tuple(_rule(entry.strip()) for entry in text.split(",")) if text else ()


def allowed(url: str, admitting: Sequence[Rule]) -> Target:
    """Take a URL apart if a rule admits it. Raises FetchError."""
    target = _target(url)
    if not any(rule.admits(target) for rule in admitting):
        raise FetchError("not_allowed", f"VIM_FETCH_HOSTS does not have {target.authority}")
    return target


def shown(url: str) -> str:
    """The host of a URL for the log, as it was written; never the path or the query, which may hold a signature."""
    found = _URL.match(url)
    return found[2].rpartition("@")[2] if found else ""


def _rule(entry: str) -> Rule:
    subdomains = entry.startswith(".")
    if found := re.fullmatch(r"\*(?::([0-9]{1,5}))?", entry):
        return Rule("*", False, _port(found[1]))
    try:
        host, port = _host_and_port(entry.removeprefix("."))
    except FetchError as error:
        raise ValueError(error.reason) from None
    address = literal(host)
    if address is not None and (subdomains or not is_public(address)):
        raise ValueError(f"{host} is no public address")
    return Rule(host, subdomains, port)


def _target(url: str) -> Target:
    found = None if _UNSAFE.search(url) else _URL.fullmatch(url)
    if found is None:
        _refuse("not an http or https URL, or it has blanks, control characters or backslashes")
    scheme, (host, port), path = found[1].lower(), _host_and_port(found[2]), found[3]
    path = path if path.startswith("/") else f"/{path}"
    return Target(scheme, host, _default_port(scheme) if port is None else port, quote(path, safe=_PRINTABLE))


def _host_and_port(authority: str) -> tuple[str, int | None]:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        _refuse("the host is not written as a name, an IPv4 address or [an IPv6 address], perhaps with a port")
    host = _ipv6(found[1]) if found[1] else _name(found[2])
    return host, _port(found[3])


def _ipv6(text: str) -> str:
    if (address := literal(text)) is None or address.version != 6:
        _refuse("no IPv6 address between brackets")
    return str(address)


def _name(text: str) -> str:
    """A name or IPv4 address in its one spelling. Raises FetchError for numbers such as 2130706433 or 0x7f.1."""
    try:
        name = text.lower() if text.isascii() or len(text) > _LONGEST_NAME else idna.encode(text.lower()).decode()
    except UnicodeError:
        _refuse("a name with characters that names do not have")
    name = name.removesuffix(".")
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        _refuse("no name of a host")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) and literal(name) is None:
        _refuse("an IPv4 address in an unusual spelling")
    return name


def _port(digits: str | None) -> int | None:
    if digits is not None and not 0 < int(digits) < 1 << 16:
        _refuse("no port between 1 and 65535")
    return int(digits) if digits else None


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _refuse(reason: str) -> NoReturn:
    raise FetchError("not_allowed", reason)
