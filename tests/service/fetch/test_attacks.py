"""Attacks with URLs, one row each: how the fetch ends, and which addresses were dialled before that."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from service.fetch.fetcher import MOST_REDIRECTS, FetchLimits
from service.fetch.outcome import FetchError, Outcome
from tests.service.fetch.fake_web import LIMITS, PUBLIC, SHORT, FakeWeb, Page, redirect

pytestmark = pytest.mark.anyio

OTHER = "198.41.0.4"
IMAGE = Page([b"GIF89a"])
SITE = "http://a.example/"
ALIASES = "http://alias.example/"  # a name of the attacker that leads anywhere


class Attack(NamedTuple):
    """A URL, what it should end with, and the web that it is sent to."""

    what: str
    url: str
    outcome: Outcome
    dialled: Sequence[str] = ()
    names: Mapping[str, Sequence[Sequence[str]]] = {}  # the addresses of each look-up
    pages: Mapping[str, Page] = {SITE: IMAGE}
    limits: FetchLimits = LIMITS


def alias(what: str, *addresses: str) -> Attack:
    """A name that leads to these addresses."""
    return Attack(what, ALIASES, "not_allowed", names={"alias.example": [addresses]}, pages={ALIASES: IMAGE})


def spelled(what: str, *urls: str) -> list[Attack]:
    """URLs that are refused as they are written."""
    return [Attack(f"{what} {url[:60]}", url, "not_allowed") for url in urls]


def led(what: str, location: str, status: int = 302, outcome: Outcome = "not_allowed") -> Attack:
    """A public page that leads elsewhere."""
    return Attack(what, SITE, outcome, [PUBLIC], pages={SITE: redirect(location, status)})


ATTACKS = [
    *spelled("metadata", "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://192.0.0.192/"),
    *spelled("metadata", "http://100.100.100.200/", "http://168.63.129.16/", "http://[fd20:ce::254]/"),
    *spelled("loopback", "http://127.0.0.1/", "http://127.127.127.127/", "http://0.0.0.0/", "http://0/"),
    *spelled("private", "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/"),
    *spelled("special", "http://198.18.0.1/", "http://224.0.0.1/", "http://255.255.255.255/", "http://192.0.0.1/"),
    *spelled("IPv6", "http://[::1]/", "http://[::]/", "http://[fe80::1]/", "http://[fc00::1]/", "http://[fec0::1]/"),
    *spelled("IPv6", "http://[ff02::1]/", "http://[2001:db8::1]/", "http://[100::1]/", "http://[5f00::1]/"),
    *spelled("mapped", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::ffff:8.8.8.8]/"),
    *spelled("NAT64", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::7f00:1]/", "http://[64:ff9b::8.8.8.8]/"),
    *spelled("6to4, Teredo", "http://[2002:7f00:1::]/", "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/"),
    *spelled("zone", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[2606:4700::1%251]/"),
    *spelled("number", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://127.1/", "http://1.1.1/"),
    *spelled("octal", "http://0177.0.0.1/", "http://127.0.0.01/", "http://0300.0250.0.1/", "http://017700000001/"),
    *spelled("number", "http://0x/", "http://1.2.3.4.5/", "http://a.example.1/", "http://256.1.1.1/"),
    *spelled("unicode", "http://127。0。0。1/", "http://１２７.0.0.1/", "http://①②⑦.0.0.1/", "http://127.0.0.1．/"),
    *spelled("unicode", "http://a\u2024example/", "http://a\u00ad.example\u2044x/", "http://\u202ea.example/"),
    *spelled("userinfo", "http://a.example@127.0.0.1/", "http://user:pass@a.example/", "http://@a.example/"),
    *spelled("userinfo", "http://127.0.0.1#@a.example/", "http://127.0.0.1\\@a.example/", "http://a.example\\@b/"),
    *spelled(
        "port", "http://a.example:22/", "http://a.example:0/", "http://a.example:65616/", "http://a.example:8080/"
    ),
    *spelled(
        "port", "http://a.example:/", "http://a.example:80:80/", "http://a.example:８０/", "http://a.example:-80/"
    ),
    *spelled(
        "control", "http://a.example/\r\nHost: b", "http://a.example\r\n/", "http://a.example/\x00", "http://a\t.b/"
    ),
    *spelled("control", "http://a.example/ HTTP/1.1", " http://a.example/", "http://a.example/\x7f"),
    *spelled("host", "http://", "http:///", "http://?", "http://.", "http://..", "http://a..b/", "http://%61.example/"),
    *spelled("host", "http://a.example../", "http://[", "http://[]/", "http://[a.example]/", "http://[1.1.1.1]/"),
    *spelled("long", f"http://{'a' * 64}.example/", f"http://{'a.' * 127}example/", f"http://{'ä' * 300}/"),
    *spelled(
        "scheme", "file:///etc/passwd", "ftp://a.example/", "gopher://a.example/", "//a.example/", "http:a.example"
    ),
    alias("a name of loopback", "127.0.0.1"),
    alias("a name of metadata", "169.254.169.254"),
    alias("a name of metadata, IPv6", "fd00:ec2::254"),
    alias("a name of a private address", "10.1.2.3"),
    alias("a name of a mapped address", "::ffff:10.1.2.3"),
    alias("a name of NAT64", "64:ff9b::a01:203"),
    alias("a name of a link-local address with its zone", "fe80::1%2"),
    alias("one public address before a private one", PUBLIC, "10.1.2.3"),
    alias("one private address before a public one", "::1", PUBLIC),
    Attack("no address at all", ALIASES, "unreachable", names={"alias.example": [[]]}),
    Attack("an answer that is no address", ALIASES, "unreachable", names={"alias.example": [[PUBLIC, "2130706433"]]}),
    Attack(
        "rebinding: the second answer is loopback",
        "http://re.example/",
        "ok",
        [PUBLIC],
        {"re.example": [[PUBLIC], ["127.0.0.1"]]},
        {"http://re.example/": IMAGE},
    ),
    Attack(
        "rebinding after a redirect to the same name",
        "http://re.example/",
        "not_allowed",
        [PUBLIC],
        {"re.example": [[PUBLIC], ["127.0.0.1"]]},
        {"http://re.example/": redirect("/next"), "http://re.example/next": IMAGE},
    ),
    led("redirect to loopback", "http://127.0.0.1/"),
    led("redirect to metadata", "http://169.254.169.254/latest/", 307),
    led("redirect to metadata without a scheme", "//169.254.169.254/latest/", 308),
    led("redirect to a file", "file:///etc/passwd", 301),
    led("redirect to gopher", "gopher://127.0.0.1:6379/_", 303),
    led("redirect to a port", "http://a.example:6379/"),
    led("redirect to userinfo", "http://a.example@127.0.0.1/"),
    led("redirect with a tab in the scheme", "ht\ttp://127.0.0.1/"),
    led("redirect to broken brackets", "http://[::1", outcome="bad_response"),
    Attack("redirect to nothing", SITE, "bad_response", [PUBLIC], pages={SITE: Page(status=302)}),
    Attack("redirect loop", SITE, "bad_response", [PUBLIC] * (1 + MOST_REDIRECTS), pages={SITE: redirect(SITE)}),
    Attack(
        "redirect to a name of loopback",
        SITE,
        "not_allowed",
        [PUBLIC],
        {"alias.example": [["127.0.0.1"]]},
        {SITE: redirect(ALIASES)},
    ),
    Attack(
        "redirect to another public host",
        SITE,
        "ok",
        [PUBLIC, OTHER],
        {"alias.example": [[OTHER]]},
        {SITE: redirect(ALIASES), ALIASES: IMAGE},
    ),
    Attack("status", SITE, "bad_response", [PUBLIC], pages={SITE: Page([b"GIF89a"], 206)}),
    Attack("login", SITE, "bad_response", [PUBLIC], pages={SITE: Page(status=401, headers={"WWW-Authenticate": "x"})}),
    Attack("slow header", SITE, "timeout", [PUBLIC], pages={SITE: Page(hangs="header")}, limits=SHORT),
    Attack("slow body", SITE, "timeout", [PUBLIC], pages={SITE: Page([b"GIF"], hangs="end")}, limits=SHORT),
    Attack("endless body", SITE, "too_large", [PUBLIC], pages={SITE: Page([b"x" * 100], endless=True)}),
    Attack("announced 10 GB", SITE, "too_large", [PUBLIC], pages={SITE: Page(headers={"Content-Length": "9" * 11})}),
    Attack(
        "gzip bomb",
        SITE,
        "bad_response",
        [PUBLIC],
        pages={SITE: Page([b"\x1f\x8b"], 200, {"Content-Encoding": "gzip"})},
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
async def test_an_attack_reaches_no_address_that_is_not_public(attack: Attack) -> None:
    """Each ends as expected, dials these addresses and no other, and reads little more than the limit."""
    web = FakeWeb(attack.names, attack.pages)
    received = 0

    def receive(size: int) -> None:
        nonlocal received
        received += size

    outcome: Outcome = "ok"
    try:
        await web.fetcher(limits=attack.limits).fetch(attack.url, receive)
    except FetchError as error:
        outcome = error.outcome

    assert (attack.outcome, list(attack.dialled)) == (outcome, web.dialled)
    assert received <= LIMITS.max_bytes
    assert all(body.closed for body in web.bodies)
    assert sum(body.read for body in web.bodies) <= 11  # pieces of the endless one


@pytest.mark.parametrize("attack", [one for one in ATTACKS if one.outcome == "ok"], ids=lambda attack: attack.what)
async def test_a_name_is_looked_up_once_for_each_hop(attack: Attack) -> None:
    """Nothing between the check and the connection asks for the name again."""
    web = FakeWeb(attack.names, attack.pages)
    await web.fetcher().fetch(attack.url, lambda _: None)

    assert len(web.dialled) == len(web.looked_up)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
async def test_a_listed_host_opens_no_other(attack: Attack) -> None:
    """With one listed host, only that host is asked; redirects and names leave it nowhere."""
    web = FakeWeb(attack.names, attack.pages)
    with contextlib.suppress(FetchError):
        await web.fetcher("a.example", attack.limits).fetch(attack.url, lambda _: None)

    assert {"a.example"} >= {request.headers["Host"] for request in web.requests}
