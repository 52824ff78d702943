"""VIM_FETCH_HOSTS, and which URLs it admits in which spelling."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fetch.addresses import literal
from service.fetch.hosts import Target, allowed, rules, shown
from service.fetch.outcome import FetchError


def admitted(url: str, hosts: str) -> bool:
    """Return whether these hosts admit the URL."""
    try:
        allowed(url, rules(hosts))
    except FetchError:
        return False
    return True


def numeric(host: str) -> bool:
    """Return whether the operating system reads a host as an IPv4 address in any spelling."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("hosts", "yes", "no"),
    [
        ("a.example", ["http://a.example/", "https://A.EXAMPLE./x"], ["http://b.a.example/", "http://aa.example/"]),
        (".a.example", ["http://a.example/", "http://c.b.a.example/"], ["http://ba.example/", "http://a.example.b/"]),
        ("*", ["http://a.example/", "http://10.0.0.1/", "http://[::1]/"], ["http://a.example:8080/"]),
        ("a.example", ["http://a.example:443/", "https://a.example:80/"], ["http://a.example:22/"]),
        ("a.example:8443", ["https://a.example:8443/"], ["https://a.example/", "http://a.example:8444/"]),
        ("*:81", ["http://a.example:81/"], ["http://a.example/"]),
        ("1.1.1.1, [2606:4700::1]:81", ["http://1.1.1.1/", "http://[2606:4700:0::1]:81/"], ["http://1.1.1.2/"]),
        ("bücher.example", ["http://xn--bcher-kva.example/", "http://BÜCHER.example/"], ["http://bucher.example/"]),
        (" b.example ,a.example", ["http://a.example/", "http://b.example/"], ["http://c.example/"]),
        ("", [], ["http://a.example/", "http://1.1.1.1/"]),
    ],
)
def test_an_entry_admits_its_host_and_ports(hosts: str, yes: list[str], no: list[str]) -> None:
    """An entry is one host, a host with its subdomains, or every host; with its port, or with 80 and 443."""
    assert yes == [url for url in yes + no if admitted(url, hosts)]


@pytest.mark.parametrize(
    "hosts",
    [
        ",",
        "a.example,",
        "https://a.example",
        "a.example/path",
        "user@a.example",
        "*.a.example",
        "..a.example",
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a example",
        "127.0.0.1",
        "[::1]",
        "[::ffff:8.8.8.8]",
        ".1.1.1.1",
        "2130706433",
        "[1.1.1.1]",
        "2606:4700::1",
    ],
)
def test_an_entry_that_is_no_public_host_is_refused(hosts: str) -> None:
    """URLs, stars in names, odd ports and addresses that are not public are mistakes."""
    with pytest.raises(ValueError, match="."):
        rules(hosts)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a.example", Target("http", "a.example", 80, "/")),
        ("HTTPS://A.Example.:443/B%2f?c=%41#d", Target("https", "a.example", 443, "/B%2f?c=%41")),
        ("http://a_b.r3---sn.example/?q", Target("http", "a_b.r3---sn.example", 80, "/?q")),
        ("http://a.example?q=http://b/", Target("http", "a.example", 80, "/?q=http://b/")),
        ("http://a.example/ä@b:c", Target("http", "a.example", 80, "/%C3%A4@b:c")),
        ("http://[2606:4700:0:0::1]/", Target("http", "2606:4700::1", 80, "/")),
        ("http://1.1.1.1:80/", Target("http", "1.1.1.1", 80, "/")),
    ],
)
def test_a_url_has_one_reading(url: str, target: Target) -> None:
    """Host, port and path are what is dialled and sent: one spelling for each host, without the fragment."""
    assert target == allowed(url, rules("*"))


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://a.example/", "a.example"),
        ("https://a.example:443/", "a.example"),
        ("https://a.example:80/", "a.example:80"),
        ("http://[2606::1]:443/", "[2606::1]:443"),
    ],
)
def test_the_host_header_has_the_port_only_where_it_is_needed(url: str, authority: str) -> None:
    """The Host header has brackets round an IPv6 address, and a port that is not the scheme's own."""
    assert authority == allowed(url, rules("*")).authority


@given(st.text(st.sampled_from("htps:/.[]@\\?#%0x17aé。１ "), max_size=25))
def test_an_admitted_host_is_a_name_or_an_address(rest: str) -> None:
    """Whatever the text, an admitted host is an address in its usual spelling or a name that is no number."""
    try:
        target = allowed(f"http://{rest}", rules("*"))
    except FetchError:
        return
    last = target.host.rpartition(".")[2]

    assert literal(target.host) or not (last.isdigit() or last.startswith("0x") or numeric(target.host))
    assert target.host.isascii()
    assert target.path.startswith("/")
    assert " " not in target.path


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://a.example:81/secret?signature=secret#secret", "a.example:81"),
        ("http://user:secret@a.example/", "a.example"),
        ("http://a.example?secret", "a.example"),
        ("nonsense secret", ""),
    ],
)
def test_only_the_host_is_for_the_log(url: str, host: str) -> None:
    """Path, query and userinfo of a URL are not shown, because they may be secrets."""
    assert host == shown(url)
