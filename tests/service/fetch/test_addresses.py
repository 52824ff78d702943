"""Which IP addresses are public, compared with the registries by a table and with Python's own knowledge."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fetch.addresses import is_public, literal


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::",
        "2001:4860:4860::8888",
        "2003::1",
        "2606:4700:4700::1111",
        "2a00:1450:4001::",
    ],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """Addresses that belong to the internet are public, also those directly beside a range that is not."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",  # metadata of Alibaba Cloud
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",  # the host of a machine of Azure
        "169.254.169.254",  # metadata of AWS, Azure, Google and others
        "169.254.170.2",  # credentials of containers of AWS
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",  # metadata of Oracle's cloud
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",  # mapped, whatever it embeds
        "::ffff:0:127.0.0.1",  # translated
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::7f00:1",
        "100::1",  # discarded
        "2001::1",  # Teredo
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "2001:2::1",  # benchmarks
        "2001:20::1",  # ORCHID
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::",
        "3ffe::1",
        "3fff::1",
        "5f00::1",  # segment routing
        "fc00::1",
        "fd00:ec2::254",  # metadata of AWS
        "fd20:ce::254",  # metadata of Google
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",  # site-local
        "ff02::1",
        "2606:4700:4700::1111%1",
    ],
)
def test_addresses_that_a_network_keeps_for_itself_are_not_public(address: str) -> None:
    """Addresses of machines, networks and clouds are not public, nor any form that embeds another address."""
    assert not is_public(ipaddress.ip_address(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_python_calls_private_is_not_public(address: IPv4Address | IPv6Address) -> None:
    """Every public address is one that Python's tables call global, and neither multicast nor reserved."""
    forbidden = not address.is_global or address.is_multicast or address.is_reserved

    assert not (is_public(address) and forbidden)


@given(st.ip_addresses(v=4))
def test_no_ipv6_address_leads_to_an_embedded_one(address: IPv4Address) -> None:
    """No known way to write an IPv4 address as an IPv6 address is public, not even for a public one."""
    number = int(address)
    forms = [
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number ^ 0xFFFFFFFF,
    ]

    assert not [form for form in map(IPv6Address, forms) if is_public(form)]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", IPv4Address("127.0.0.1")),
        ("::1", IPv6Address("::1")),
        ("0177.0.0.1", None),
        ("2130706433", None),
        ("127.1", None),
        ("example.org", None),
    ],
)
def test_only_the_usual_spelling_is_an_address(host: str, address: IPv4Address | None) -> None:
    """Octal, decimal and shortened forms of an IPv4 address are not read as one."""
    assert address == literal(host)
