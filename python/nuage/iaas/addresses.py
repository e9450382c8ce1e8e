"""Addresses of ports: each site gives out its own slice of a segment, so none asks another.

A segment's network is cut into `SITES_MAX` slices; the site numbered n owns slice n. The
first slice also holds the network's own address and the gateway's. A VM that moves keeps its
address: the slice says who gave it, not where it is.
"""

import hashlib
from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, ip_interface
from socket import AF_INET, inet_pton
from typing import Final

from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.model.infrastructure import SITES_MAX
from nuage.model.network import Segment

# "This network", loopback, link-local, multicast and what is reserved (RFC 6890).
NO_HOSTS: Final = tuple(
    IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)
PREFIX_LENGTH_MAX = 26  # leaves four addresses a slice
SLICES_KEPT_MAX = 4096  # segments and sites in use at one controller, a few hundred bytes each


def parse_network(cidr: str) -> IPv4Network:
    """Return the network of a segment.

    Raises:
        InvalidRequest: it is not IPv4 in CIDR form, hosts cannot have its addresses, or it is too
            small to give each site a slice.
    """
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        raise InvalidRequest(
            f"{cidr!r}: {error}",
            field="cidr",
            hint="segments are IPv4: for instance 10.20.0.0/20",
        ) from None
    for reserved in NO_HOSTS:
        if network.overlaps(reserved):
            raise InvalidRequest(
                f"{network}: no host can have an address of {reserved}",
                field="cidr",
                hint="private ones: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
            )
    if network.prefixlen > PREFIX_LENGTH_MAX:
        raise InvalidRequest(
            f"/{network.prefixlen} is too small: each of {SITES_MAX} sites needs a slice",
            field="cidr",
            hint=f"use /{PREFIX_LENGTH_MAX} or larger",
        )
    return network


def free_address(segment: Segment, site_number: int, used: Iterable[str]) -> str:
    """Return the lowest free address of a site's slice, as ``a.b.c.d/len``.

    Raises:
        QuotaExceeded: the site's slice of the segment is full.
    """
    taken = {host_number(address) for address in used}
    number = free_number(segment, site_number, taken)
    return f"{IPv4Address(number)}/{IPv4Network(segment.cidr).prefixlen}"


def free_number(
    segment: Segment, site_number: int, used: Collection[int], promised: Collection[int] = ()
) -> int:
    """Return the lowest address of a site's slice that nobody has or was promised, as a number.

    Raises:
        QuotaExceeded: the site's slice of the segment is full.
    """
    numbers, kept = _slice_of(segment.cidr, segment.gateway, site_number)
    for number in numbers:
        if number in used or number in promised or number in kept:
            continue
        return number
    count = len(numbers)
    raise QuotaExceeded(f"addresses of segment {segment.name}", limit=count, used=count, asked=1)


@lru_cache(maxsize=SLICES_KEPT_MAX)
def _slice_of(cidr: str, gateway: str, site_number: int) -> tuple[range, frozenset[int]]:
    """Return a site's slice of a network, and what in the network is given to no port."""
    network = IPv4Network(cidr)
    base = int(network.network_address)
    slice_count = network.num_addresses // SITES_MAX
    first = base + site_number * slice_count
    last = min(first + slice_count, base + network.num_addresses - 1)  # never the broadcast
    kept = frozenset({base, base + 1, int(IPv4Address(gateway)) if gateway else base})
    return range(first, last), kept


def host_number(address: str) -> int:
    """Return a port's address, ``a.b.c.d/len`` or the same in IPv6, as a number."""
    try:
        return int.from_bytes(inet_pton(AF_INET, address.partition("/")[0]), "big")
    except OSError:
        return int(ip_interface(address).ip)


def mac_of(port_id: str) -> str:
    """Return the MAC address of a port: locally administered, from the hash of its id."""
    digest = hashlib.sha256(port_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
