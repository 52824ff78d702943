"""Which IP addresses are public, and which are private, local, reserved or internal to a cloud.

The registries are IANA's of special-purpose addresses. `ipaddress.is_global` is not enough: it changes with the version
of Python, and does not cover embedded addresses and those of clouds.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_4 = tuple(
    IPv4Network(one)
    for one in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by the customers of a provider (CGNAT); metadata of Alibaba Cloud
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of a virtual machine of Azure
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; metadata of Oracle's cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# Only these are given out. Everything else is loopback, link-local, site-local, unique local (fc00::/7), multicast,
# mapped (::ffff:0:0/96), translated by NAT64 (64:ff9b::/96, 64:ff9b:1::/48) or reserved.
_GLOBAL_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(one)
    for one in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3ffe::/16",  # returned
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Return whether the address belongs to the public internet. Addresses that embed another one do not."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None or address not in _GLOBAL_6:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


def literal(host: str) -> Address | None:
    """The address that a host is, in its usual spelling and without brackets; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
